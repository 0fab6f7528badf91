"""The workflows that ship: as people find them, and as they run on the real host."""

import json
import sys
from itertools import combinations
from pathlib import Path

import pytest
from find_host import ROOT
from make_workflows import READABLE, in_both_languages, lay_out
from shipped import shipped
from shipped_workflows import WORKFLOWS
from workflow import NOTES, WORKFLOW_1, to_prompt

FOLDER = Path(__file__).parents[2] / "workflows"
FILES = sorted(FOLDER.glob("*.json"))
TOY = ["1 Toy FLUX in one minute", "4 One SRPO step, node by node"]  # `test_flux_workflows.py` runs the others
THUMBNAIL_BYTES = 150_000
HEADER = 30  # of a node, above its position

each_workflow = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def load(file: Path) -> dict:
    return json.loads(file.read_text("utf-8"))


def values(file: Path) -> list:
    """The widgets' values of all nodes but notes."""
    return [node["widgets_values"] for node in load(file)["nodes"] if node["type"] not in NOTES]


def overlap(a, b) -> bool:
    """Whether two rectangles (x, y, width, height) share an area."""
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))


def inside(a, b) -> bool:
    return all(b[i] <= a[i] and a[i] + a[i + 2] <= b[i] + b[i + 2] for i in (0, 1))


def box(node) -> tuple:
    (x, y) = node["pos"]
    (width, height) = node["size"]
    return x, y - HEADER, width, height + HEADER


def brief(prompt: dict) -> dict:
    """The prompt, with little to do: the shipped settings are the demo's to try."""
    small = {
        "SRPO_Train": {"updates": 2, "batch": 2},
        "SRPO_Rollouts": {"steps": 4},
        "SRPO_Previews": {"steps": 4, "count": 1, "every": 1},
        "SRPO_Compare": {"prompts": 1},
    }
    for entry in prompt.values():
        entry["inputs"] |= small.get(entry["class_type"], {})
    return prompt


def test_the_projects_root_is_not_importable():
    assert str(FOLDER.parent) not in sys.path


def test_sub_folders_are_not_listed_by_the_host_so_there_are_none():
    assert FILES
    assert not [path for path in FOLDER.iterdir() if path.is_dir()]


@each_workflow
def test_has_a_note_a_thumbnail_and_nothing_of_other_packs(file):
    nodes = load(file)["nodes"]
    assert any(node["type"] in NOTES and len(node["widgets_values"][0]) > 200 for node in nodes)
    assert {node["properties"].get("cnr_id", "comfy-core") for node in nodes} <= {"comfy-core", "srpo"}
    thumbnail = file.with_suffix(".jpg").read_bytes()
    assert thumbnail.startswith(b"\xff\xd8\xff") and len(thumbnail) < THUMBNAIL_BYTES


def test_each_workflow_has_a_chinese_twin_with_its_thumbnail():
    """Else: the texts in `harness/notes_zh.json`, then `.venv/bin/python harness/make_workflows.py`."""
    twins = in_both_languages(WORKFLOWS)
    assert {file.stem for file in FILES} == twins.keys()
    for name, twin in zip(WORKFLOWS, list(twins)[len(WORKFLOWS) :], strict=True):
        assert values(FOLDER / f"{twin}.json") == values(FOLDER / f"{name}.json")
        assert (FOLDER / f"{twin}.jpg").read_bytes() == (FOLDER / f"{name}.jpg").read_bytes()


@each_workflow
def test_is_laid_out_to_be_read(file):
    workflow = load(file)
    groups = [group["bounding"] for group in workflow["groups"]]
    boxes = [box(node) for node in workflow["nodes"] if node["type"] not in NOTES]
    notes = [box(node) for node in workflow["nodes"] if node["type"] in NOTES]
    assert len({group["title"] for group in workflow["groups"]}) == len(groups) > 1
    assert all(any(inside(node, group) for group in groups) for node in boxes)
    for rectangles in (groups + notes, boxes + notes):
        assert not [pair for pair in combinations(rectangles, 2) if overlap(*pair)]
    left, top = (min(each[side] for each in boxes + notes) for side in (0, 1))
    right, bottom = (max(each[side] + each[side + 2] for each in boxes + notes) for side in (0, 1))
    assert right - left <= READABLE[0] and bottom - top <= READABLE[1]


def test_no_two_workflows_share_an_id():
    """The front end shows the progress of one that runs on the nodes of these ids, whatever is open."""
    ids = [node["id"] for file in FILES for node in load(file)["nodes"]]
    assert len(set(ids)) == len(ids)


@each_workflow
def test_the_host_lists_it_with_its_thumbnail(host, file):
    (listed,) = host.get("/workflow_templates").values()
    assert file.stem in listed
    assert (
        host.file(f"/api/workflow_templates/{host.pack.name}/{file.stem}.jpg") == file.with_suffix(".jpg").read_bytes()
    )


@each_workflow
def test_it_is_what_the_generator_makes_of_today_s_schemas(host, file):
    """Else: `.venv/bin/python harness/make_workflows.py`."""
    made = lay_out(in_both_languages(WORKFLOWS)[file.stem], host.object_info())
    assert load(file) == made
    assert to_prompt(made, host.object_info())


def test_the_demo_runs_workflow_1(host):
    assert json.loads(WORKFLOW_1.read_text("utf-8")) == to_prompt(load(FOLDER / f"{TOY[0]}.json"), host.object_info())


@pytest.mark.parametrize("name", TOY)
def test_runs_as_it_ships(host, name):
    prompt = brief(to_prompt(load(FOLDER / f"{name}.json"), host.object_info()))
    outputs = host.run(prompt)["outputs"]
    pictures = [node for node, entry in prompt.items() if entry["class_type"] == "PreviewImage"]
    assert pictures and all(outputs[node]["images"] for node in pictures)


def test_nothing_was_written_into_the_packs_folder(host):
    """By starting, and by running the workflows above; Python's own compiled modules do not count."""
    files = {path.relative_to(host.pack).as_posix(): path for path in host.pack.rglob("*") if path.is_file()}
    files = {name: path for name, path in files.items() if "__pycache__" not in name}
    assert set(files) == set(shipped())
    assert [name for name, path in files.items() if path.read_bytes() != (ROOT / name).read_bytes()] == []


def test_words_are_looked_at_that_would_be_trained():
    """In workflow 5 they stand in two nodes: one set, so that no one wonders."""
    nodes = {node["type"]: node["widgets_values"] for node in load(FOLDER / "5 Look before you train.json")["nodes"]}
    words = [
        [line for line in text.splitlines() if not line.startswith("#")]
        for kind in ("SRPO_Objective", "SRPO_RewardTable")
        for text in nodes[kind]
        if isinstance(text, str) and "\n" in text
    ]
    assert len(words) == 4 and words[:2] == words[2:]
