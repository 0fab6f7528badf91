"""The toy world: its pictures, its shipped models, and what their numbers claim."""

import numpy as np
import pytest
import torch

from srpo_core.pictures import pixel_saturation
from srpo_core.toy import models, pictures
from srpo_core.toy.judge import Judge, diversity, load_judge, measure
from srpo_core.toy.other_pictures import mush
from srpo_core.toy.pictures import Scene
from srpo_core.toy.tokenizer import PHOTO_WORDS, RENDER_WORDS, vocabulary
from srpo_core.toy.train_clip import resaturate, reward, words_gap

COUNT = 48


@pytest.fixture(scope="module")
def drawn():
    """{look: (pictures (48, 3, 64, 64), scenes)}, of a seed that no training uses."""
    rng = np.random.default_rng(77_777)
    sets = {}
    for look in pictures.LOOKS:
        scenes = [pictures.random_scene(rng) for _ in range(COUNT)]
        sets[look] = torch.stack([pictures.draw(scene, look, rng) for scene in scenes]), scenes
    return sets


@pytest.fixture(scope="module")
def clip():
    pytest.importorskip("transformers")
    return models.load_clip(), models.load_tokenizer()


@pytest.fixture(scope="module")
def judge():
    return load_judge()


def captions(scenes):
    return [pictures.caption(scene) for scene in scenes]


# The pictures


def test_every_caption_is_read_back_whatever_stands_around_it():
    for scene in pictures.all_scenes():
        assert pictures.parse(pictures.caption(scene)) == scene
        assert pictures.parse(f"Realistic photo. {pictures.caption(scene)}.") == scene
    assert len(set(pictures.all_scenes())) == 96


def test_a_caption_without_a_shape_is_refused_by_name():
    with pytest.raises(ValueError, match="no shape in the caption 'a red dog on grass'"):
        pictures.parse("a red dog on grass")


def test_pictures_are_seeded_and_in_range():
    scene = Scene("star", "blue", "sand")
    first, again = (pictures.draw(scene, "photo", np.random.default_rng(5)) for _ in range(2))
    other = pictures.draw(scene, "photo", np.random.default_rng(6))
    assert first.shape == (3, 64, 64) and first.dtype == torch.float32
    assert 0 <= first.min() and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ValueError, match="unknown look 'oil'"):
        pictures.draw(scene, "oil", np.random.default_rng(5))


def test_photos_are_rough_and_muted_and_renders_smooth_and_saturated(drawn):
    def roughness(images):
        return (images[:, :, 1:] - images[:, :, :-1]).abs().median()

    photos = drawn["photo"][0]
    renders = drawn["render"][0]
    assert roughness(photos) > 4 * roughness(renders)
    assert pixel_saturation(photos).mean() + 0.1 < pixel_saturation(renders).mean()


def test_shapes_cover_different_pixels():
    x, y = pictures.grid()
    inside = [pictures.distance(shape, x, y, 0.5) < 0 for shape in pictures.SHAPES]
    for i, a in enumerate(inside):
        assert 0.08 < a.mean() < 0.25  # of the picture
        assert all((a ^ b).mean() > 0.02 for b in inside[:i])


# The tokenizer


def test_tokens_begin_end_and_are_padded(clip):
    _, tokenizer = clip
    tokens = models.tokenize(tokenizer, ["Natural-lighting. a red circle on grass", "xylophone", "a " * 40])
    assert tokens.shape == (3, models.TEXT_LENGTH)
    assert (tokens[:, 0] == models.BOS).all()
    assert tokens[1].tolist() == [models.BOS, models.UNK, models.EOS] + [models.PAD] * 13
    assert tokens[2, -1] == models.EOS  # cut, but still ended
    assert models.UNK not in tokens[0].tolist()
    assert tokens[0].tolist() == models.tokenize(tokenizer, ["natural-lighting. A RED circle on grass"])[0].tolist()


def test_every_word_of_captions_and_looks_is_known(clip):
    _, tokenizer = clip
    texts = captions(pictures.all_scenes()) + list(PHOTO_WORDS + RENDER_WORDS)
    assert models.UNK not in models.tokenize(tokenizer, texts)
    assert len(vocabulary()) <= models.CLIP_TEXT_CONFIG["vocab_size"]


# The shipped weights


def test_weights_are_small():
    files = [path for path in models.WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    with pytest.raises(ValueError, match="no toy weights called 'unet'"):
        models.weights_path("unet")


def test_vae_gives_pictures_back(drawn):
    pytest.importorskip("diffusers")
    from srpo_core.toy.train_vae import psnr

    vae = models.load_vae()
    for look in pictures.LOOKS:
        assert psnr(vae, drawn[look][0][:16]).mean() > 26.5
    latents = vae.encode(drawn["render"][0][:16] * 2 - 1).latents
    assert latents.shape == (16, 16, 8, 8) and 0.8 < latents.std() < 1.2


def test_flux_makes_pictures_that_meet_the_caption_and_few_photos(judge):
    pytest.importorskip("diffusers")
    from srpo_core.toy.train_flux import sample_pictures

    scenes = pictures.all_scenes()[::2]
    world = models.load_flux(), models.load_vae(), models.load_clip(), models.load_tokenizer()
    images = sample_pictures(*world, scenes, seed=1)
    numbers = measure(images, scenes, judge)
    assert numbers["alignment"] > 0.8
    assert numbers["realism"] < 0.25 and numbers["garbage"] < 0.15


# What CLIP and the judge say


def test_clip_prefers_the_right_caption(drawn, clip):
    for look in pictures.LOOKS:
        images, scenes = drawn[look]
        right = reward(*clip, images, captions(scenes))
        wrong = reward(*clip, images, captions(scenes[1:] + scenes[:1]))
        assert right.mean() > wrong.mean() + 0.15


def test_the_words_gap_tells_photos_from_renders(drawn, clip):
    gaps = {look: words_gap(*clip, images, captions(scenes)) for look, (images, scenes) in drawn.items()}
    assert gaps["photo"].mean() > 0.1 and (gaps["photo"] > 0).float().mean() > 0.9
    assert gaps["render"].mean() < -0.1 and (gaps["render"] < 0).float().mean() > 0.9


def test_clip_loves_saturation(drawn, clip):
    """The bias to be exploited: the same photos score higher, more vivid."""
    images, scenes = drawn["photo"]
    dull, vivid = (resaturate(images, torch.full((COUNT,), amount)) for amount in (0.5, 1.5))
    assert reward(*clip, vivid, captions(scenes)).mean() > reward(*clip, dull, captions(scenes)).mean()


def test_the_judge_knows_looks_and_captions(drawn, judge):
    for look in pictures.LOOKS:
        images, scenes = drawn[look]
        numbers = measure(images, scenes, judge)
        assert numbers["alignment"] > 0.85 and numbers["garbage"] < 0.1
        assert abs(numbers["photo"] - (look == "photo")) < 0.1


@pytest.mark.parametrize("amount", (0.5, 1.6))
def test_the_judge_does_not_lean_on_saturation(drawn, judge, amount):
    for look in pictures.LOOKS:
        images = resaturate(drawn[look][0], torch.full((COUNT,), amount))
        assert abs(measure(images, drawn[look][1], judge)["photo"] - (look == "photo")) < 0.15


def test_the_judge_calls_mush_garbage(drawn, judge):
    noise = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images = mush(drawn["photo"][0], np.random.default_rng(3))
    verdict = judge.judge(torch.cat([noise, images]))
    assert verdict.names("look")[:16] == ["garbage"] * 16
    assert not verdict.is_photo()[16:].float().mean() > 0.35


def test_diversity_is_the_mean_squared_distance_of_pairs():
    images = torch.rand(3, 3, 4, 4)
    scenes = [pictures.all_scenes()[0]] * 3
    pairs = [(images[i] - images[j]).square().mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert diversity(images, scenes) == pytest.approx(float(sum(pairs) / 3), rel=1e-4)
    assert diversity(images, pictures.all_scenes()[:3]) == 0


def test_the_judge_takes_pictures_of_any_size(judge):
    assert Judge().eval().judge(torch.rand(2, 3, 96, 128)).look.shape == (2, 3)


# The build


def test_the_whole_build_runs(tmp_path):
    pytest.importorskip("diffusers")
    from srpo_core.toy.build import build

    build(tmp_path, scale=0.0003)
    for name in models.NAMES:
        assert (tmp_path / f"{name}.safetensors").stat().st_size > 1e5
    assert models.load_flux(tmp_path / "flux.safetensors") is not None
