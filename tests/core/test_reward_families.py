"""Every family of reward models from small random files, against transformers' own models on the same weights."""

import gc
import json
import logging
import weakref
from pathlib import Path

import open_clip
import pytest
import sentencepiece
import tokenizers
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from reward_files import (
    FEATURE,
    PATCH,
    SIZE,
    TEXTS,
    WIDTH,
    aesthetic_v25,
    clip_model,
    laion_aesthetic,
    mps_state,
    pictures,
    save,
    siglip_model,
    to_open_clip,
)
from torch import nn
from transformers import SiglipConfig, SiglipModel, SiglipTokenizer

from srpo_core.rewards import CLIP_MEAN, CLIP_STD, Weights, detect, load_reward
from srpo_core.rewards.mps import CONDITIONS
from srpo_core.rewards.open_clip_towers import open_clip_image, open_clip_text
from srpo_core.rewards.stored import Stored
from srpo_core.rewards.tokens import clip_tokenizer, siglip_tokenizer
from srpo_core.rewards.transformers_towers import siglip_image, siglip_text

SIGLIP2_VOCABULARY = 256000


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a file of each family."""
    folder = tmp_path_factory.mktemp("rewards")
    quick = clip_model()
    gelu = clip_model("gelu")
    save(to_open_clip(gelu), folder / "HPS_v2.1_compressed.pt")
    save(to_open_clip(gelu), folder / "open_clip.safetensors")
    save(to_open_clip(gelu, "text."), folder / "custom_text.safetensors")
    save(quick.state_dict(), folder / "PickScore.safetensors")
    save(mps_state(gelu), folder / "MPS.safetensors")
    save(siglip_model().state_dict(), folder / "siglip.safetensors")
    save(siglip_model(SIGLIP2_VOCABULARY, 16).state_dict(), folder / "siglip2.safetensors")
    save(aesthetic_v25(), folder / "aesthetic_predictor_v2_5.pth")
    save(laion_aesthetic(), folder / "laion.pth")
    write_sentencepiece(folder / "siglip.spiece.model")
    write_tokenizer_json(folder / "siglip2.tokenizer.json")
    return folder


def write_sentencepiece(path):
    corpus = path.with_suffix(".txt")
    corpus.write_text("\n".join(TEXTS).lower() * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(path.with_suffix("")), vocab_size=40, pad_id=-1, bos_id=-1, eos_id=1,
        unk_id=2, hard_vocab_limit=False, minloglevel=2, control_symbols=["<pad0>"],
    )  # fmt: skip


def write_tokenizer_json(path):
    words = "<pad> <eos> <bos> <unk> a an cat on mat oil painting of the sea rain .".split()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=5)
    tokenizer.save(str(path))


CLIP_FILES = {  # file: how it is loaded, the activation of its CLIP, and its scale
    "HPS_v2.1_compressed.pt": (dict(), "gelu", 1.0),
    "open_clip.safetensors": (dict(), "gelu", 80 / 20),
    "custom_text.safetensors": (dict(), "gelu", 80 / 20),
    "PickScore.safetensors": (dict(), "quick_gelu", 80 / 20),
}


def normalised(images, mean=CLIP_MEAN, std=CLIP_STD):
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def clip_cosines(model, images, texts):
    """(len(images), len(texts)): transformers' whole model."""
    output = model(input_ids=SimpleTokenizer()(texts), pixel_values=normalised(images))
    return output.logits_per_image / model.logit_scale.exp()


def clip_features(model, images):
    return model.visual_projection(model.vision_model(pixel_values=normalised(images)).pooler_output)


def check(reward, reference):
    """Scores within 1e-5 and gradients at the pixels within 1e-4 of `reference(images, texts)`, (B, B)."""
    images = pictures().requires_grad_()
    score, swapped = reward.score_many(images, TEXTS, TEXTS[::-1])
    expected = reference(images, TEXTS)
    assert expected.diagonal().std() > 1e-3 * expected.diagonal().abs().mean()  # no test passes on constants
    torch.testing.assert_close(score, expected.diagonal(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(swapped, expected.flip(1).diagonal(), rtol=1e-5, atol=1e-6)
    check_gradient(score.sum(), expected.diagonal().sum(), images)


def check_gradient(score, expected, images):
    (ours,), (theirs,) = (torch.autograd.grad(value, images) for value in (score, expected))
    assert theirs.norm() > 1e-4
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


# Two towers


@pytest.mark.parametrize("name", CLIP_FILES)
def test_clip_is_transformers_clip(files, name):
    """Heads are 64 wide and two, so a wrong number of them shows; so does a wrong activation."""
    settings, activation, scale = CLIP_FILES[name]
    model = clip_model(activation)
    check(load_reward(files / name, **settings), lambda images, texts: scale * clip_cosines(model, images, texts))


def test_siglip_is_transformers_siglip(files):
    model = siglip_model()
    reward = load_reward(files / "siglip.safetensors")
    assert (reward.pixels.resize, reward.pixels.interpolation, reward.pixels.size) == ("squash", "bicubic", SIZE)
    theirs = SiglipTokenizer(str(files / "siglip.spiece.model"), model_max_length=16)

    def reference(images, texts):
        ids = theirs(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        output = model(input_ids=ids, pixel_values=images * 2 - 1)
        return (output.logits_per_image - model.logit_bias) / 20

    check(reward, reference)


def test_siglip2_is_transformers_siglip_on_lower_case_and_padding(files):
    model = siglip_model(SIGLIP2_VOCABULARY, 16)
    reward = load_reward(files / "siglip2.safetensors")
    assert (reward.pixels.resize, reward.pixels.interpolation) == ("squash", "bilinear")
    ids = torch.zeros(3, 16, dtype=torch.long)
    for row, known in zip(ids, ([4, 6, 7, 4, 8, 1], [5, 9, 10, 11, 12, 13, 15, 1], [14, 1])):
        row[: len(known)] = torch.tensor(known)

    def reference(images, texts):
        output = model(input_ids=ids, pixel_values=images * 2 - 1)
        return (output.logits_per_image - model.logit_bias) / 20

    check(reward, reference)


def test_siglip_tokens_are_transformers(files):
    texts = [*TEXTS, "A CAT,  on a -- mat!", "", "the sea " * 20]
    theirs = SiglipTokenizer(str(files / "siglip.spiece.model"), model_max_length=16)
    expected = theirs(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(siglip_tokenizer(files / "siglip.safetensors", 1000, 16)(texts), expected)


def test_siglip_of_384_pixels_and_patches_of_14(tmp_path):
    """27 patches of 14 pixels are 378, and the published model is fed 384."""
    model = siglip_model(image_size=384, patch_size=14, width=16)
    path = save(model.state_dict(), tmp_path / "siglip.safetensors")
    write_sentencepiece(tmp_path / "spiece.model")
    reward = load_reward(path)
    images = pictures(1, 384)
    expected = F.normalize(model.vision_model(pixel_values=images * 2 - 1).pooler_output, dim=-1)
    torch.testing.assert_close(reward.image_features(images), expected, rtol=1e-5, atol=1e-6)


class Shapes:
    """In place of Weights: the shapes of a model that is not in memory."""

    def __init__(self, model):
        self.path = Path("model.safetensors")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.stored = {name: Stored(shape, torch.float32, 0) for name, shape in self.shapes.items()}

    def check(self, names):
        """All of them can be read."""


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"])
def test_open_clip_towers_of_the_published_sizes(name):
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = open_clip.CLIP(**config)
    weights = Shapes(model)
    image, text = (build(weights, "gelu").check() for build in (open_clip_image, open_clip_text))
    assert image.image_size == model.visual.image_size
    for ours, theirs in ((image.transformer, model.visual.transformer), (text.transformer, model.transformer)):
        assert ours.resblocks[-1].attn.num_heads == theirs.resblocks[-1].attn.num_heads


def test_any_width_of_the_feed_forward_layers():
    """open_clip rounds width * ratio down, and 1408 * (1414 / 1408) is just below 1414."""
    config = open_clip.get_model_config("ViT-g-14")
    config["vision_cfg"] |= dict(layers=1, mlp_ratio=1414.5 / 1408)
    with torch.device("meta"):
        weights = Shapes(open_clip.CLIP(**config))
    assert weights.shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"] == (1414, 1408)
    open_clip_image(weights, "gelu").check()


SO400M = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16)
GIANT = dict(hidden_size=1536, intermediate_size=6144, num_hidden_layers=40, num_attention_heads=16)


@pytest.mark.parametrize(
    "image, text",
    [
        (SO400M | dict(image_size=384, patch_size=14), SO400M),
        (SO400M | dict(image_size=512, patch_size=16), SO400M),
        (GIANT | dict(image_size=384, patch_size=16), SO400M | dict(projection_size=1536)),
    ],
)
def test_siglip_towers_of_the_published_sizes(image, text):
    with torch.device("meta"):
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=image))
    weights = Shapes(model)
    ours = [build(weights, "gelu_pytorch_tanh").check() for build in (siglip_image, siglip_text)]
    assert ours[0].config.image_size == image["image_size"]
    assert [tower.config.num_attention_heads for tower in ours] == [16, 16]


def test_hps_goes_by_name_or_by_word(files):
    named = files / "HPS_v2.1_compressed.pt"
    plain = files / "open_clip.safetensors"
    assert load_reward(named).scale == 1
    assert load_reward(named, hps=False).scale == pytest.approx(4)
    assert load_reward(plain, hps=True).scale == 1


CONFIGURATIONS = {  # of a CLIP with an image tower this wide and this activation, by layout
    "transformers": (
        "config.json",
        lambda width, act: {"model_type": "clip", "vision_config": {"hidden_size": width, "hidden_act": act}},
    ),
    "open_clip": (
        "open_clip_config.json",
        lambda width, act: {"model_cfg": {"quick_gelu": act == "quick_gelu", "vision_cfg": {"width": width}}},
    ),
}


@pytest.mark.parametrize(
    "layout, usual, other", [("transformers", "quick_gelu", "gelu"), ("open_clip", "gelu", "quick_gelu")]
)
def test_activation(tmp_path, layout, usual, other):
    """What is asked comes first, then a configuration of this model beside the file, then the layout's usual one."""
    model = clip_model()
    path = save(model.state_dict() if layout == "transformers" else to_open_clip(model), tmp_path / "clip.pt")
    image = pictures()
    expected = {name: load_reward(path, activation=name).image_features(image) for name in (usual, other)}
    assert (expected[usual] - expected[other]).abs().max() > 1e-3
    assert torch.equal(load_reward(path).image_features(image), expected[usual])
    name, config = CONFIGURATIONS[layout]
    (tmp_path / name).write_text(json.dumps(config(1024, other)))  # of another model
    assert torch.equal(load_reward(path).image_features(image), expected[usual])
    (tmp_path / name).write_text(json.dumps(config(WIDTH, other)))
    assert torch.equal(load_reward(path).image_features(image), expected[other])
    assert torch.equal(load_reward(path, activation=usual).image_features(image), expected[usual])
    (tmp_path / name).write_text("{")
    with pytest.raises(ValueError, match=f"{name} is not JSON"):
        load_reward(path)
    (tmp_path / f"clip.{name}").write_text(json.dumps(config(WIDTH, other)))  # comes before the folder's
    assert torch.equal(load_reward(path).image_features(image), expected[other])


def test_an_activation_that_is_none(files):
    with pytest.raises(ValueError, match="no activation 'relu': choose one of auto, gelu, quick_gelu"):
        load_reward(files / "PickScore.safetensors", activation="relu")


def test_openai_weights_in_open_clips_layout(tmp_path):
    path = save(to_open_clip(clip_model()), tmp_path / "ViT-L-14-openai.safetensors")
    model = clip_model("quick_gelu")
    check(load_reward(path), lambda images, texts: 4 * clip_cosines(model, images, texts))


def test_wide_image_towers_use_gelu(tmp_path):
    """As CLIP-H and PickScore; a file of transformers' layout without config.json."""
    model = clip_model("gelu", hidden_size=1280, num_attention_heads=16, intermediate_size=64, num_hidden_layers=1)
    reward = load_reward(save(model.state_dict(), tmp_path / "PickScore.safetensors"))
    expected = F.normalize(clip_features(model, pictures()), dim=-1)
    torch.testing.assert_close(reward.image_features(pictures()), expected, rtol=1e-5, atol=1e-6)


TWO_TOWERS = [*CLIP_FILES, "siglip.safetensors", "siglip2.safetensors", "MPS.safetensors"]


@pytest.mark.parametrize("name", [*TWO_TOWERS, "laion.pth", "aesthetic_predictor_v2_5.pth"])
def test_bfloat16_is_close_and_half_as_large(files, name):
    beside = {"laion.pth": "PickScore.safetensors", "aesthetic_predictor_v2_5.pth": "siglip.safetensors"}.get(name)
    backbone = files / beside if beside else None
    full = load_reward(files / name, backbone=backbone)
    half = load_reward(files / name, backbone=backbone, dtype=torch.bfloat16)
    towers = [half.image_tower.image_tower if backbone else half.image_tower]
    towers += [] if backbone else [half.text_tower()]
    assert all(p.dtype == torch.bfloat16 for tower in towers for p in tower.parameters())
    images = pictures().requires_grad_()
    score = half.score(images, TEXTS)
    assert score.dtype == torch.float32
    (gradient,) = torch.autograd.grad(score.sum(), images)
    exact = full.score(images, TEXTS)
    (expected,) = torch.autograd.grad(exact.sum(), images)
    torch.testing.assert_close(score, exact, rtol=0, atol=0.03 * getattr(full, "scale", 1))
    assert F.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_the_text_tower_is_gone_once_texts_are_known(files, name):
    reward = load_reward(files / name)
    towers = []
    load = reward.text_tower

    def watched():
        tower = load()
        towers.append(weakref.ref(tower))
        return tower

    reward.text_tower = watched
    assert not towers
    first = reward.score(pictures(), TEXTS)
    gc.collect()
    assert len(towers) == 1 and towers[0]() is None
    assert torch.equal(reward.score(pictures(), TEXTS), first) and len(towers) == 1


def test_only_the_image_tower_is_read_at_load(files, tmp_path):
    """A text tower that is spoilt is found when it is read, and no sooner."""
    state = to_open_clip(clip_model())
    state["ln_final.bias"][3] = torch.nan
    reward = load_reward(save(state, tmp_path / "clip.safetensors"))
    reward.image_features(pictures())
    with pytest.raises(ValueError, match="clip.safetensors is spoilt: ln_final.bias"):
        reward.prepare(["a"])


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_loading_under_inference_mode_does_not_spoil_the_gradient_later(files, name):
    with torch.inference_mode():
        reward = load_reward(files / name)
        reward.score(pictures(), TEXTS)
    images = pictures().requires_grad_()
    reward.score(images, TEXTS).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in reward.image_tower.parameters())


def test_loading_draws_no_random_numbers(files):
    state = torch.get_rng_state()
    for name in TWO_TOWERS:
        load_reward(files / name).prepare(["a"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["open_clip.safetensors", "siglip.safetensors"])
def test_text_features_are_remembered_by_what_makes_them(files, tmp_path, name):
    def fresh(path=files / name, **settings):
        return load_reward(path, features_folder=tmp_path / "features", **settings)

    expected = fresh().text_features(TEXTS)
    again = fresh()
    again.text_tower = None
    assert torch.equal(again.text_features(TEXTS), expected)
    assert fresh(activation="quick_gelu").features.missing(TEXTS)
    assert fresh(dtype=torch.bfloat16).features.missing(TEXTS)
    (tmp_path / "siglip.spiece.model").write_bytes((files / "siglip.spiece.model").read_bytes())
    same = tmp_path / name
    same.write_bytes((files / name).read_bytes())
    assert not fresh(same).features.missing(TEXTS)
    content = bytearray(same.read_bytes())
    content[-1] ^= 1  # other weights
    same.write_bytes(content)
    assert fresh(same).features.missing(TEXTS)


def test_a_text_that_is_too_long_is_cut_and_named_once(caplog):
    tokenizer = clip_tokenizer(77, pad=0)
    long = "cat " * 90
    longer = "dog " * 100
    with caplog.at_level(logging.WARNING):
        ids = tokenizer(["a cat", "cat " * 75])
        assert not caplog.records
        cut = tokenizer([long, longer])
    assert torch.equal(ids, SimpleTokenizer()(["a cat", "cat " * 75]))
    assert torch.equal(cut, SimpleTokenizer()([long, longer]))
    assert len(caplog.records) == 1
    assert "reads 75 tokens" in caplog.text and long in caplog.text and "has 90" in caplog.text


# MPS


def rotated(x):
    """Rotary embedding of x (N, d) by complex numbers: the pairs are (i, i + d / 2)."""
    half = x.shape[-1] // 2
    angle = torch.outer(torch.arange(len(x)), 10000 ** (-torch.arange(half) / half))
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def attention(q, k, v, mask=0):
    return torch.softmax(q @ k.T / q.shape[-1] ** 0.5 + mask, dim=-1) @ v


def norm(x, weight):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def gated(x):
    x, gate = x.tensor_split(2, dim=-1)
    return x * gate * torch.sigmoid(gate)


def mps_reference(state, model, image, text, condition="overall"):
    """The score of one picture (3, H, W), by the published formulas: one head, one picture, one text at a time."""

    def text_tokens(text):
        ids = torch.full((1, 77), 49407)
        known = SimpleTokenizer()([text])[0]
        ids[0, : known.argmax() + 1] = known[: known.argmax() + 1]
        return model.text_projection(model.text_model(input_ids=ids).last_hidden_state)[0], known.argmax()

    tokens, end = text_tokens(text)
    likeness = torch.einsum("id,jd->ji", tokens, text_tokens(CONDITIONS[condition])[0]).max(0).values
    mask = torch.where(likeness / likeness.max() > 0.01, 0.0, float("-inf"))
    assert mask.isinf().any() and not mask.isinf().all()
    hidden = model.vision_model(pixel_values=normalised(image[None])).last_hidden_state
    x = model.visual_projection(hidden)[0]
    for i in range(2):
        cross, alone = (
            {name.removeprefix(f"cross_model.layers.{i}.{half}.fn."): w for name, w in state.items()} for half in (0, 1)
        )
        normed = norm(x, cross["norm.weight"])
        k, v = (tokens @ cross["to_kv.weight"].T).tensor_split(2, dim=-1)
        out = [attention(q, k, v, mask) for q in (normed @ cross["to_q.weight"].T).split(16, dim=-1)]
        ff = gated(normed @ cross["ff.0.weight"].T) @ cross["ff.2.weight"].T
        x = x + torch.cat(out, dim=-1) @ cross["to_out.weight"].T + ff
        fused = norm(x, alone["norm.weight"]) @ alone["fused_attn_ff_proj.weight"].T
        q, k, v, ff = fused.split([48, 16, 16, 192], dim=-1)
        out = [attention(rotated(head), rotated(k), v) for head in q.split(16, dim=-1)]
        x = x + torch.cat(out, dim=-1) @ alone["attn_out.weight"].T + gated(ff) @ alone["ff_out.1.weight"].T
    return 80 / 20 * F.cosine_similarity(x[0], tokens[end], dim=0)


def set_apart(model):
    """Make the words of the texts unlike those of the condition, so that the mask has something to leave out."""
    embedding = model.text_model.embeddings.token_embedding.weight
    away = SimpleTokenizer().encode(" ".join(TEXTS).replace(".", ""))
    near = SimpleTokenizer().encode(CONDITIONS["overall"]) + [49406, 49407]
    direction = 6 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
    embedding[away] -= direction
    embedding[near] += direction


@pytest.mark.parametrize("prefix, condition", [("", "overall"), ("mps.", "overall"), ("", "quality")])
def test_mps_is_its_published_formulas(tmp_path, prefix, condition):
    model = clip_model("gelu")
    set_apart(model)
    state = mps_state(model)
    path = save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "MPS.pt")

    def reference(images, texts):
        return torch.stack([torch.stack([mps_reference(state, model, i, t, condition) for t in texts]) for i in images])

    check(load_reward(path, condition=condition), reference)


def test_mps_passes_the_images_through_clip_once(files):
    reward = load_reward(files / "MPS.safetensors")
    passes = []
    reward.image_tower.tokens.register_forward_hook(lambda *_: passes.append(1))
    reward.score_many(pictures(), TEXTS, TEXTS[::-1])
    assert len(passes) == 1


# Aesthetic predictors


def aesthetic_reference(state, features):
    """torch's own Sequential, with the dropout of training."""
    steps = [nn.Linear(features.shape[-1], 24), nn.Dropout(0.5), nn.Linear(24, 20), nn.Dropout(0.5)]
    steps += [nn.Linear(20, 12), nn.Dropout(0.5), nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 1)]
    if "layers.7.bias" in state:
        del steps[7]
    head = nn.Sequential(*steps).eval()
    head.load_state_dict({name.split(".", 1)[1]: tensor for name, tensor in state.items()})
    return head(features / features.norm(dim=-1, keepdim=True)).squeeze(-1) / 10


def test_aesthetic_v25_is_its_head_on_siglip(files):
    reward = load_reward(files / "aesthetic_predictor_v2_5.pth", backbone=files / "siglip.safetensors")
    assert not reward.reads_text
    images = pictures().requires_grad_()
    features = siglip_model().vision_model(pixel_values=images * 2 - 1).pooler_output
    expected = aesthetic_reference(aesthetic_v25(), features)
    score = reward.score(images, TEXTS)
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-6)
    check_gradient(score.sum(), expected.sum(), images)


@pytest.mark.parametrize(
    "backbone, activation", [("PickScore.safetensors", "quick_gelu"), ("open_clip.safetensors", "gelu")]
)
def test_laion_aesthetic_is_its_head_on_clip_of_either_layout(files, backbone, activation):
    reward = load_reward(files / "laion.pth", backbone=files / backbone)
    images = pictures().requires_grad_()
    features = clip_features(clip_model(activation), images)
    expected = aesthetic_reference(laion_aesthetic(), features)
    score = reward.score(images, [])
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-6)
    check_gradient(score.sum(), expected.sum(), images)


def test_an_image_tower_alone_is_backbone_enough(files, tmp_path):
    """As the files in models/clip_vision; it is no reward, and says so."""
    image = {name: w for name, w in siglip_model().state_dict().items() if name.startswith("vision_model.")}
    path = save(image, tmp_path / "sigclip_vision.safetensors")
    whole, alone = (
        load_reward(files / "aesthetic_predictor_v2_5.pth", backbone=backbone).score(pictures(), [])
        for backbone in (files / "siglip.safetensors", path)
    )
    assert torch.equal(whole, alone)
    with pytest.raises(ValueError, match="sigclip_vision.safetensors has an image tower alone.*reads texts"):
        load_reward(path)


@pytest.mark.parametrize("head", ["laion.pth", "aesthetic_predictor_v2_5.pth"])
def test_backbones_that_do_not_fit(files, tmp_path, head):
    with pytest.raises(ValueError, match=f"{head} is a head on the image feature.*its backbone, which is missing"):
        load_reward(files / head)
    laion = head == "laion.pth"
    fits = "PickScore" if laion else "siglip"
    other = "siglip" if laion else "PickScore"
    with pytest.raises(ValueError, match=f"The backbone {other}.safetensors is .*, and {head} needs"):
        load_reward(files / head, backbone=files / f"{other}.safetensors")
    wide = save(laion_aesthetic(768) if laion else aesthetic_v25(1152), tmp_path / head)
    width = FEATURE if laion else WIDTH
    needed = 768 if laion else 1152
    with pytest.raises(ValueError, match=f"features {needed} wide, and those of {fits}.safetensors are {width} wide"):
        load_reward(wide, backbone=files / f"{fits}.safetensors")


# Which family a file is of, and files of none

FAMILIES = {
    "HPS_v2.1_compressed.pt": "CLIP (open_clip)",
    "custom_text.safetensors": "CLIP (open_clip)",
    "PickScore.safetensors": "CLIP (transformers)",
    "siglip2.safetensors": "SigLIP",
    "MPS.safetensors": "MPS",
    "aesthetic_predictor_v2_5.pth": "aesthetic predictor v2.5",
    "laion.pth": "LAION aesthetic predictor",
}


@pytest.mark.parametrize("name, family", FAMILIES.items())
def test_families_are_told_by_their_keys(files, name, family):
    assert detect(Weights(files / name).shapes) == family


def test_a_file_of_no_family(tmp_path):
    state = {"model.diffusion_model.input.weight": torch.zeros(2, 2), "first_stage.bias": torch.zeros(1)}
    path = save(state, tmp_path / "flux.safetensors")
    with pytest.raises(ValueError, match="flux.safetensors: This file is no reward .*first_stage.*Known are CLIP"):
        load_reward(path)
    state = {"visual.conv1.weight": torch.zeros(2, 3, 3, 3), "visual.layer1.0.conv1.weight": torch.zeros(1)}
    resnet = save(state, tmp_path / "RN50.pt")
    with pytest.raises(ValueError, match="RN50.pt: This file is no reward model"):
        load_reward(resnet)


@pytest.mark.parametrize(
    "lost",
    [
        "visual.transformer.resblocks.1.mlp.c_fc.bias",
        "visual.proj",
        "visual.ln_pre.weight",
        "transformer.resblocks.2.attn.in_proj_weight",
        "positional_embedding",
        "logit_scale",
    ],
)
def test_a_layout_with_a_key_missing(lost, tmp_path):
    state = to_open_clip(clip_model())
    del state[lost]
    with pytest.raises(ValueError, match=f"clip.pt is not whole: {lost} is missing"):
        load_reward(save(state, tmp_path / "clip.pt"))


def test_towers_with_more_than_is_known(tmp_path):
    """As of a CoCa, whose scores would be silently wrong."""
    state = to_open_clip(clip_model()) | {"visual.attn_pool.query": torch.zeros(4, WIDTH)}
    with pytest.raises(ValueError, match=r"another model than those known here, with visual.attn_pool.query is more"):
        load_reward(save(state, tmp_path / "coca.pt"))
    state = to_open_clip(clip_model())
    state["visual.ln_pre.weight"] = torch.ones(WIDTH + 1)
    with pytest.raises(ValueError, match=rf"visual.ln_pre.weight is \({WIDTH + 1},\), where \({WIDTH},\) would fit"):
        load_reward(save(state, tmp_path / "clip.pt"))


def test_buffers_that_some_files_hold_are_not_in_the_way(tmp_path):
    state = clip_model().state_dict() | {
        "vision_model.embeddings.position_ids": torch.arange((SIZE // PATCH) ** 2 + 1)[None],
        "text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    load_reward(save(state, tmp_path / "clip.pt")).prepare(["a"])


def test_clip_with_another_vocabulary(tmp_path):
    state = to_open_clip(clip_model()) | {"token_embedding.weight": torch.zeros(32000, WIDTH)}
    with pytest.raises(ValueError, match="is a CLIP with 32000 tokens"):
        load_reward(save(state, tmp_path / "clipa.pt"))


def test_naflex_siglip2(tmp_path):
    state = siglip_model().state_dict()
    state["vision_model.embeddings.patch_embedding.weight"] = torch.zeros(WIDTH, 3 * PATCH**2)
    with pytest.raises(ValueError, match="naflex.safetensors is a NaFlex SigLIP2.*Use one of a fixed resolution"):
        load_reward(save(state, tmp_path / "naflex.safetensors"))


def test_patches_that_form_no_square(tmp_path):
    state = to_open_clip(clip_model()) | {"visual.positional_embedding": torch.zeros(16, WIDTH)}
    with pytest.raises(ValueError, match="made for 15 patches, which form no square"):
        load_reward(save(state, tmp_path / "clip.pt"))


def test_siglip_without_its_tokenizer_or_with_another(files, tmp_path):
    path = save(siglip_model().state_dict(), tmp_path / "siglip.safetensors")
    sentence = "tokenizer of siglip.safetensors is missing. Take spiece.model .*/siglip-so400m.*'siglip.spiece.model'"
    with pytest.raises(ValueError, match=sentence):
        load_reward(path)
    (tmp_path / "tokenizer.json").write_bytes((files / "siglip2.tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match="tokenizer.json is the tokenizer of another model than siglip.safetensors"):
        load_reward(path)
    (tmp_path / "siglip.spiece.model").write_bytes((files / "siglip.spiece.model").read_bytes())
    load_reward(path)
    path = save(siglip_model(SIGLIP2_VOCABULARY, 16).state_dict(), tmp_path / "second.safetensors")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="Take tokenizer.json .*/siglip2-so400m.*'second.tokenizer.json'"):
        load_reward(path)
