"""The workflows for published models run as they ship: from files, by the stock loaders, to the end."""

import json
import re
from pathlib import Path

import prompts
import pytest
from flux_files import write_flux_files, write_smaller_t5
from host_server import HostServer
from PIL import Image
from shipped_workflows import WORKFLOWS
from test_workflows import FILES, brief
from workflow import to_prompt
from z_image_files import write_smaller_z_image, write_z_image_files

SIDE = 32  # of its pictures: the VAE has its full size
FLUX = [file for file in FILES if file.stem in WORKFLOWS and "UNETLoader" in file.read_text("utf-8")]
BRIEF = {"rollouts": ("SRPO_Rollouts", prompts.ROLLOUTS), "previews": ("SRPO_Previews", prompts.PREVIEWS)}
UNUSED = "clip missing: ['text_projection.weight']"  # which clip_l.safetensors has not


@pytest.fixture(scope="module")
def server(comfyui, pack, tmp_path_factory):
    """A ComfyUI with the files that the workflows ask for, where their notes say."""
    base = tmp_path_factory.mktemp("flux")
    write_smaller_t5(base / "custom_nodes/smaller_t5", comfyui)
    write_flux_files(base / "models")
    write_smaller_z_image(base / "custom_nodes/smaller_z_image")
    write_z_image_files(base / "models")
    (base / "input/photos").mkdir(parents=True)
    Image.effect_noise((96, 64), 50).convert("RGB").save(base / "input/photos/a grey wall.png")
    # More names on the white list.
    with HostServer(comfyui, base, ("smaller_t5", "smaller_z_image", "--disable-api-nodes")) as running:
        yield running


def with_little_to_sample(prompt: dict) -> dict:
    """The prompt, small, and with nodes for what is not connected where that would take long."""
    prompt = brief(prompt)
    for node in prompt.values():
        node["inputs"] |= {side: SIDE for side in ("width", "height") if side in node["inputs"]}
        taken = {"SRPO_Train": ("rollouts", "previews"), "SRPO_Compare": ("previews",)}.get(node["class_type"], ())
        node["inputs"] |= {name: [name, 0] for name in taken}
    return prompt | {name: prompts.node(kind, **inputs) for name, (kind, inputs) in BRIEF.items()}


@pytest.mark.parametrize("file", FLUX, ids=lambda file: file.stem)
def test_runs_from_the_files_that_its_note_names(server, file: Path):
    prompt = with_little_to_sample(to_prompt(json.loads(file.read_text("utf-8")), server.object_info()))
    outputs = server.run(prompt)["outputs"]
    pictures = {node["class_type"]: outputs[id_] for id_, node in prompt.items() if "images" in outputs.get(id_, {})}
    assert {"SRPO_Compare", "SRPO_RecoverySweep"} & pictures.keys()
    assert any("words-gap" in text for output in outputs.values() for text in output.get("text", ()))
    said = server.log.replace(UNUSED, "")
    assert not re.search("not loaded|missing|not finite", said), said
