"""The CLIP reward, against transformers' own forward, torchvision's preprocessing and finite differences."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode
from transformers import CLIPConfig, CLIPModel

from srpo_core.rewards import CLIP_MEAN, CLIP_STD, Pixels, TextFeatures, clip_reward, score_words

SIZE = 16
TEXT = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
VISION = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE)
IDS = dict(max_position_embeddings=12, pad_token_id=0, bos_token_id=1, eos_token_id=3)


class Tokenizer:
    """One token for each letter; remembers what it was asked."""

    def __init__(self):
        self.texts = []

    def __call__(self, texts, padding, truncation, return_tensors):
        assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
        self.texts += texts
        rows = [[1, *(4 + ord(letter) % 60 for letter in text[:10]), 3] for text in texts]
        return type("Batch", (), {"input_ids": torch.tensor([row + [0] * (12 - len(row)) for row in rows])})


@pytest.fixture
def clip():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPModel(
            CLIPConfig(text_config=TEXT | IDS, vision_config=VISION | dict(patch_size=4), projection_dim=8)
        )


@pytest.fixture
def reward(clip):
    return clip_reward(clip, Tokenizer())


def pictures(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def own_preprocessing(images):
    steps = [v2.Resize(SIZE, InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(SIZE)]
    return v2.Compose([*steps, v2.Normalize(CLIP_MEAN, CLIP_STD)])(images)


def test_score_is_that_of_transformers(clip, reward):
    images = pictures(3, 3, 24, 20)
    texts = ["a cat", "a dog", "the moon"]
    tokens = Tokenizer()(texts, "max_length", True, "pt").input_ids
    with torch.no_grad():
        logits = clip(input_ids=tokens, pixel_values=own_preprocessing(images)).logits_per_image
    score = reward.score_many(images, texts, texts[::-1])
    assert score.shape == (2, 3)
    torch.testing.assert_close(score[0], logits.diagonal() / 20)
    torch.testing.assert_close(score[1], logits.flip(1).diagonal() / 20)


def test_other_pixel_statistics(clip):
    images = pictures(1, 3, SIZE, SIZE)
    plain = clip_reward(clip, Tokenizer(), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    scale = torch.tensor(CLIP_STD).view(3, 1, 1) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    moved = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) * scale + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    expected = clip_reward(clip, Tokenizer()).score(moved, ["a"])
    torch.testing.assert_close(plain.score(images, ["a"]), expected)


def test_gradient_at_the_pixels(clip, reward):
    """Against a straight graph through transformers' own forward, and against finite differences."""
    images = pictures(2, 3, 24, 20).requires_grad_()
    texts = ["a cat", "a dog"]
    (gradient,) = torch.autograd.grad(reward.score(images, texts).sum(), images)
    tokens = Tokenizer()(texts, "max_length", True, "pt").input_ids
    logits = clip(input_ids=tokens, pixel_values=own_preprocessing(images)).logits_per_image
    (expected,) = torch.autograd.grad(logits.diagonal().sum() / 20, images)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)

    direction = gradient / gradient.norm()
    step = 1e-2
    with torch.no_grad():
        ahead, behind = (reward.score(images + sign * step * direction, texts).sum() for sign in (1, -1))
    assert ((ahead - behind) / (2 * step)).item() == pytest.approx(gradient.norm().item(), rel=1e-2)


def test_the_reward_is_frozen(clip, reward):
    images = pictures(1, 3, SIZE, SIZE).requires_grad_()
    reward.score(images, ["a"]).sum().backward()
    assert not clip.training
    assert all(not p.requires_grad and p.grad is None for p in clip.parameters())


def test_each_text_is_encoded_once(clip):
    tokenizer = Tokenizer()
    reward = clip_reward(clip, tokenizer)
    first = reward.text_features(["a cat", "a dog", "a cat"])
    assert tokenizer.texts == ["a cat", "a dog"]
    again = reward.text_features(["a dog", "a cat"])
    assert len(tokenizer.texts) == 2
    assert torch.equal(again, first[[1, 0]]) and torch.equal(first[2], first[0])
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(3))


def test_what_a_text_is_encoded_with_changes_no_bit_of_it(clip):
    texts = [f"{'a very ' * i}small cat" for i in range(40)]
    together = clip_reward(clip, Tokenizer()).text_features(texts)
    alone = [clip_reward(clip, Tokenizer()).text_features([text]) for text in texts]
    assert torch.equal(together, torch.cat(alone))


def test_one_pass_over_the_images_for_all_texts(clip, reward):
    passes = []
    clip.vision_model.register_forward_hook(lambda *_: passes.append(1))
    reward.score_many(pictures(2, 3, SIZE, SIZE), ["a", "b"], ["c", "d"], ["e", "f"])
    assert len(passes) == 1


def test_scoring_in_inference_mode_first_does_not_spoil_the_gradient_later(clip):
    """ComfyUI runs its nodes under inference_mode; the text features cached there are used in training."""
    images = pictures(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        reward = clip_reward(clip, Tokenizer())
        before = reward.score(images, ["a"])
    images.requires_grad_()
    score = reward.score(images, ["a"])
    score.sum().backward()
    torch.testing.assert_close(score.detach(), before.clone())
    assert images.grad.abs().sum() > 0


def unnormalised(size, resize):
    return Pixels(size, resize, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "height, width", [(16, 16), (64, 64), (33, 47), (47, 33), (17, 18), (18, 17), (23, 16), (12, 35), (720, 1283)]
)
def test_preprocessing_is_torchvisions(height, width):
    images = pictures(2, 3, height, width, seed=height)
    expected = v2.CenterCrop(SIZE)(v2.Resize(SIZE, InterpolationMode.BICUBIC, antialias=True)(images))
    torch.testing.assert_close(unnormalised(SIZE, "crop")(images), expected, rtol=0, atol=1e-6)
    expected = v2.Resize((SIZE, SIZE), InterpolationMode.BICUBIC, antialias=True)(images)
    torch.testing.assert_close(unnormalised(SIZE, "squash")(images), expected, rtol=0, atol=1e-6)


def test_preprocessing_of_every_small_size_is_torchvisions():
    for longer in range(7, 40):
        for images in (pictures(1, 3, 7, longer), pictures(1, 3, longer, 7)):
            expected = v2.CenterCrop(5)(v2.Resize(5, InterpolationMode.BICUBIC, antialias=True)(images))
            torch.testing.assert_close(unnormalised(5, "crop")(images), expected, rtol=0, atol=1e-6)


def test_odd_pictures():
    crop = unnormalised(SIZE, "crop")
    grey = pictures(2, 1, 20, 20)
    colour = pictures(2, 3, 20, 20)
    torch.testing.assert_close(crop(grey), crop(grey.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(crop(torch.cat([colour, grey], 1)), crop(colour))
    torch.testing.assert_close(crop(torch.full((1, 3, 1, 1), 0.25)), torch.full((1, 3, SIZE, SIZE), 0.25))
    narrow = pictures(1, 3, 2, 20000)  # resized as a whole it would be 16 x 160,000
    expected = v2.Resize(SIZE, InterpolationMode.BICUBIC, antialias=True)(narrow[..., 9984:10016])
    torch.testing.assert_close(crop(narrow), v2.CenterCrop(SIZE)(expected), rtol=0, atol=1e-6)
    for shape in [(2, 2, 8, 8), (3, 8, 8), (1, 3, 0, 8)]:
        with pytest.raises(ValueError, match=r"of shape \("):
            crop(torch.zeros(shape))


# What is asked of any reward


class Brightness:
    """The least a reward can be."""

    def score(self, images, texts):
        return images.mean((1, 2, 3)) * torch.tensor([float(len(text)) for text in texts])


class Sharpness:
    reads_text = False

    def score(self, images, texts):
        return images.diff(dim=-1).abs().mean((1, 2, 3))


def test_a_reward_with_score_alone_is_asked_twice():
    images = pictures(2, 3, 8, 8)
    positive, negative = score_words(Brightness(), images, ["a", "bb"], ["ccc", "dddd"], update=1)
    torch.testing.assert_close(positive, images.mean((1, 2, 3)) * torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(negative, images.mean((1, 2, 3)) * torch.tensor([3.0, 4.0]))


def test_the_negative_of_a_reward_without_text_is_the_image_with_noise():
    images = pictures(2, 3, 8, 8)
    first, again, later = (
        score_words(Sharpness(), images, ["a", "b"], ["c", "d"], update=update) for update in (1, 1, 2)
    )
    torch.testing.assert_close(first[0], Sharpness().score(images, []))
    assert (first[1] > first[0]).all()  # noise is taken for detail here
    assert torch.equal(first[1], again[1]) and not torch.equal(first[1], later[1])


def test_a_reward_of_the_wrong_shape_is_named():
    class Mean:
        def score(self, images, texts):
            return images.mean()

    with pytest.raises(ValueError, match=r"The score of Mean gave \(\) for 2 images"):
        score_words(Mean(), pictures(2, 3, 8, 8), ["a", "b"], ["c", "d"], update=1)


# Text features on disk


def test_text_features_come_back_on_the_next_start(tmp_path, clip):
    texts = ["a cat", "a dog"]
    tokenizer = Tokenizer()
    first = clip_reward(clip, tokenizer)
    first.features = TextFeatures(tmp_path / "new" / "features.safetensors")
    expected = first.text_features(texts)
    first.text_features(["a cow"])
    second = clip_reward(clip, tokenizer)
    second.features = TextFeatures(tmp_path / "new" / "features.safetensors")
    assert torch.equal(second.text_features(texts), expected) and len(second.features) == 3
    assert tokenizer.texts == ["a cat", "a dog", "a cow"]


def test_a_spoilt_file_of_text_features_is_made_anew(tmp_path, clip, caplog):
    file = tmp_path / "features.safetensors"
    file.write_bytes(b"half of a file")
    reward = clip_reward(clip, Tokenizer())
    reward.features = TextFeatures(file)
    assert "made anew" in caplog.text
    expected = reward.text_features(["a cat"])
    assert torch.equal(TextFeatures(file).get(["a cat"]), expected)


def test_what_was_encoded_before_a_cancel_is_kept(tmp_path, clip):
    reward = clip_reward(clip, Tokenizer())
    texts = [f"text {i}" for i in range(9)]
    reward.features = TextFeatures(tmp_path / "features.safetensors")

    def cancel(done, total):
        assert total == 9
        if done == 4:
            raise InterruptedError

    reward.on_text = cancel
    with pytest.raises(InterruptedError):
        reward.prepare(texts)
    kept = TextFeatures(tmp_path / "features.safetensors")
    assert kept.missing(texts) == texts[4:]
    whole = clip_reward(clip, Tokenizer()).text_features(texts[:4])
    assert torch.equal(kept.get(texts[:4]), whole)
