"""The demo's claim, on three seeds: more realism, captions kept, colours calm."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parent.parent / "demo"


@pytest.fixture(scope="module")
def demo():
    """The script `python demo`."""
    spec = importlib.util.spec_from_file_location("demo_main", DEMO / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_realism_doubles_and_little_is_lost(demo, tmp_path, seed):
    report = demo.run(demo.DiffusersWorld(seed), tmp_path)
    assert report["realism_after"] >= 2 * report["realism_before"], report
    assert report["alignment_after"] >= report["alignment_before"] - 0.10, report
    assert report["saturation_after"] <= 1.05 * report["saturation_before"], report
    assert report["words_gap_after"] > report["words_gap_before"], report
    assert {f.suffix for f in tmp_path.iterdir()} >= {".png", ".safetensors"}


def test_the_demo_through_comfyui(comfyui, demo, tmp_path, monkeypatch):
    """The command itself, with fewer pictures to judge and fewer updates: it runs and reports."""
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path)])
    monkeypatch.setattr(demo, "PICTURES", 1)
    monkeypatch.setattr(demo, "all_scenes", lambda all_scenes=demo.all_scenes: all_scenes()[::8])
    demo.main()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["host"].startswith("ComfyUI")
    keys = ("realism", "words_gap", "saturation", "alignment")
    assert all(0 <= abs(report[f"{key}_{when}"]) <= 1 for key in keys for when in ("before", "after"))
    assert {f.name for f in tmp_path.iterdir()} >= {"before_after.png", "training.png", "report.json"}
    assert list(tmp_path.glob("*.safetensors"))
