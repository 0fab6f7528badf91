"""The frozen model beside the trained one, and what SRPO Train offers with it, on the real host."""

import json

import numpy as np
import prompts
import pytest
import torch
from host_server import HostError
from oracle import host_model, random_flux, with_adapter
from PIL import Image

from srpo_core.toy.pictures import Scene, draw


def test_the_frozen_velocity_is_the_untouched_models(pack):
    base = host_model(random_flux())
    model, _ = with_adapter(base)
    make = pack("nodes.host.flow_model").HostFlow
    x = torch.randn(2, 16, 8, 8)
    sigma = torch.tensor([0.7, 0.93])
    cond = [[torch.randn(2, 6, 32), {"pooled_output": torch.randn(2, 24)}]]
    flow = make(model, guidance=3.5)
    with torch.inference_mode():
        trained = flow.velocity(x, sigma, cond).value
        frozen = flow.frozen_velocity(x, sigma, cond)
        again = flow.velocity(x, sigma, cond).value
        untouched = make(base, guidance=3.5).velocity(x, sigma, cond).value
    assert (trained - frozen).abs().max() > 1e-2
    torch.testing.assert_close(frozen, untouched, rtol=0, atol=1e-5)  # without gradient the host uses other kernels
    assert torch.equal(trained, again) and not frozen.requires_grad


def metrics(host, run: str) -> list[dict]:
    return [json.loads(line) for line in (host.base / f"output/srpo/{run}/metrics.jsonl").read_text().splitlines()]


def test_photos_beside_prompts_reused_rollouts_a_guard_and_chosen_previews(host):
    place = host.base / "input/beside"
    place.mkdir(parents=True, exist_ok=True)
    for seed in range(2):
        pixels = draw(Scene("square", "blue", "sand"), "photo", np.random.default_rng(seed)).permute(1, 2, 0)
        Image.fromarray((255 * pixels).round().byte().numpy()).save(place / f"a blue square on sand {seed}.png")
    options = {
        "batch": 2,
        "reuse": 2,
        "photo_share": 0.5,
        "norm_guard": 0.5,
        "distance_guard": 0.1,
        "previews_count": 2,
    }
    options |= {"photos": ["photos", 0], "previews_dataset": ["shown", 0], "previews_seeds": "7, 8"}
    wanted = prompts.train("beside", 3, {"learning_rate": 1e-2}, **options)
    photos = {"clip": ["toy", 1], "vae": ["toy", 2], "folder": "beside", "width": 64, "height": 64}
    wanted["photos"] = prompts.node("SRPO_Photos", **photos, default_caption="")
    wanted["shown"] = prompts.node("SRPO_Prompts", clip=["toy", 1], text=prompts.CAPTION, file="none")
    wanted["save"] = prompts.node("SaveImage", images=["train", 3], filename_prefix="beside")
    host.run(wanted)
    lines = metrics(host, "beside")
    assert [line["velocity_ratio"] == pytest.approx(1, abs=1e-5) for line in lines] == [True, False, False]
    assert lines[0]["guard"] < 1e-5 < lines[2]["guard"]
    host.run(
        prompts.base("beside")
        | prompts.sample(["toy", 0], 7)
        | {
            "decode": prompts.node("VAEDecode", samples=["sample", 0], vae=["toy", 2]),
            "save": prompts.node("SaveImage", images=["decode", 0], filename_prefix="expected"),
        }
    )
    first, expected = (
        np.asarray(Image.open(min((host.base / "output").glob(f"{name}_*.png")))).astype(int)
        for name in ("beside", "expected")
    )
    assert abs(first - expected).max() <= 1  # the first preview: that prompt, from that seed, before training


@pytest.mark.parametrize("seeds", ["one", "1, -2", "1.5", str(2**64)])
def test_seeds_that_are_none(host, seeds):
    with pytest.raises(HostError, match="seeds holds"):
        host.run(prompts.train("seeds", 1, previews_seeds=seeds))
