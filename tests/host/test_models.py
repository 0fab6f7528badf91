"""Every family of models that the host loads and that makes pictures, tiny: how far each of them trains.

Here a dose of them; `python -m bench.models` tries all, and writes what it finds to docs/models.md.
"""

import contextlib
import json
import os
from pathlib import Path

import pytest
from families import FAMILIES, LEFT_OUT
from model_checks import CHECKS, Checked, decoded
from twins import TWINS, compared
from vaes import VAES, VAES_BESIDE

LARGEST = {"gradient": 1e-5, "value": 1e-5, "round trip": 1e-5, "update": 0.0}
TABLE = os.environ.get("MODELS_TABLE")  # where what is found of all families is written, for bench.models

# One of each kind of process, of latents, of conditionings and of layers.
DOSE = (
    "FLUX.1 dev",
    "FLUX.1 Kontext",
    "FLUX.1 Fill",
    "FLUX.2 klein",
    "SD3.5",
    "Z-Image",
    "Qwen-Image",
    "Qwen-Image-Edit",
    "Chroma",
    "Wan 2.1",
    "HunyuanVideo",
    "OmniGen2, reference",
    "HiDream I1",
    "HiDream O1",
    "Ernie-Image",
    "PixelDiT",
    "Krea 2",
    "Mochi",
    "LTXV",
    "JoyImage",
    "Anima",
    "Cosmos Predict 2",
    "Cosmos 1",
    "CogVideoX",
    "SD 1.5",
    "SDXL v",
    "PixArt sigma",
)
# Of one kind each; the others' decoders take long.
DOSE_VAES = (
    "SD",
    "FLUX",
    "FLUX.2",
    "HunyuanVideo",
    "Wan 2.1",
    "Wan 2.2",
    "CogVideoX",
    "LTXV",
    "Stable Cascade C",
    "pixels",
)


def test_each_model_of_the_host_is_a_family_or_left_out_for_a_reason(pack):
    import comfy.supported_models

    here = {kind.__name__ for kind in comfy.supported_models.models}
    assert here == {family.kind for family in FAMILIES} | LEFT_OUT.keys()
    assert LEFT_OUT.keys().isdisjoint(family.kind for family in FAMILIES)
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert set(DOSE) <= set(names)
    assert {family.vae for family in FAMILIES} == {None, *VAES} and set(DOSE_VAES) <= VAES.keys()


@pytest.fixture(scope="module")
def table():
    """What is found, by what is looked at, its name and the check: a number, or what was said."""
    found = {"families": {}, "decoders": {}, "diffusers": {}}
    yield found
    if TABLE:
        rows = [
            {"name": f.name, "kind": f.kind, "latent": f.latent, "vae": f.vae, "found": found["families"][f.name]}
            for f in FAMILIES
        ]
        whole = [row["name"] for row in rows if all(right(*of) for of in row["found"].items())]
        content = found | {"families": rows, "whole": whole, "left out": LEFT_OUT}
        Path(TABLE).write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize("family", [f for f in FAMILIES if TABLE or f.name in DOSE], ids=lambda family: family.name)
def test_a_family(pack, table, family, tmp_path):
    checked = Checked(family, tmp_path)
    found = table["families"][family.name] = {name: outcome(check, checked) for name, check in CHECKS.items()}
    off = {name: value for name, value in found.items() if not right(name, value)}
    assert not off, f"{family.name}: {off}"


@pytest.mark.parametrize("name", VAES if TABLE else DOSE_VAES)
def test_pictures_and_gradients_of_a_vae(pack, table, name):
    off, gradient_off = decoded(next(family for family in FAMILIES if family.vae == name), name)
    table["decoders"][name] = {"class": VAES[name].place, "pictures": off, "gradient": gradient_off}
    assert off < 1e-6 and gradient_off < 1e-6


@pytest.mark.parametrize("name", ["Wan 2.2", "LTXV"])
def test_blocks_that_keep_what_their_next_call_goes_on_from_do_not_run_again(pack, name, monkeypatch, caplog):
    """Where others do, as at the large latents of pictures of a usual size."""
    monkeypatch.setattr(pack("nodes.host.decoder"), "SMALL", 0)
    off, gradient_off = decoded(next(family for family in FAMILIES if family.vae == name), name)
    assert off < 1e-6 and gradient_off < 1e-6 and "can't run again" in caplog.text


def test_a_tiny_vae_of_videos_decodes_as_a_whole_for_its_gradient(pack, table, monkeypatch):
    """In pieces, as for pictures alone, it keeps no graph of the last one. Its ReLUs turn within a difference."""
    family = next(family for family in FAMILIES if family.name == "Wan 2.1")
    off, gradient_off = decoded(family, "TAEHV")
    table["decoders"]["TAEHV"] = {"class": VAES_BESIDE["TAEHV"].place, "pictures": off, "gradient": gradient_off}
    assert off < 1e-6 and gradient_off < 1e-2
    monkeypatch.setattr(pack("nodes.host.decoder"), "whole", lambda _: contextlib.nullcontext())
    assert decoded(family, "TAEHV")[1] > 0.1


@pytest.mark.parametrize("name", TWINS)
def test_the_trained_step_is_that_of_diffusers(pack, table, name):
    """Of both, tables of times and places are in fp32, which single tensors show."""
    off = compared(TWINS[name])
    table["diffusers"][name] = {"class": TWINS[name].kind} | vars(off)
    assert off.recovered < 1e-5 and off.gradient < 1e-5 and off.worst < 5e-5


def outcome(check, checked: Checked) -> float | str:
    try:
        return check(checked)
    except Exception as error:  # the host's models have many kinds
        return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def right(name: str, found: float | str) -> bool:
    return isinstance(found, float) and found <= LARGEST[name]
