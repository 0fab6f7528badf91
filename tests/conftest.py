"""What all tests share.

Tests of the core `import srpo_core` without the project's root on `sys.path`: ComfyUI has modules called `nodes`,
`tests` and more of our names. Nor is the core installed, so that the host of the tests sees only the pack's folder.
"""

import gc
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
settings.register_profile("srpo", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
settings.load_profile("srpo")
# By measure, the longest first: a file is one worker's.
LONGEST = (
    "test_browser",
    "test_demo",
    "test_flux_workflows",
    "test_host_compile",
    "test_bench",
    "test_host_training",
    "test_models",
    "test_host_caches",
    "test_host_failures",
    "test_fuzz",
    "test_host_bases",
    "test_toy",
    "test_host_fitting",
    "test_bench_flux",
    "test_host_prompts",
    "test_host_decoder",
    "test_host_load_reward",
    "test_host_photos",
    "test_host_memory_plan",
    "test_host_carried",
    "test_host_readable",
    "test_host_adapters",
    "test_host_derivative",
    "test_failures",
)
sys.path[:] = [place for place in sys.path if Path(place).resolve() != ROOT]  # `python -m pytest` puts it there
sys.path += [str(ROOT / "harness"), str(ROOT / "tests/support")]

import import_core  # noqa: E402, F401

# Everything here, and every process that it starts, is bound by Windows' rule for files that are mapped.
AS_WINDOWS = str(ROOT / "tests/support/as_windows")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (AS_WINDOWS, os.environ.get("PYTHONPATH"))))
sys.modules.pop("sitecustomize", None)
sys.path.insert(0, AS_WINDOWS)
import sitecustomize  # noqa: E402, F401

sys.path.remove(AS_WINDOWS)

from find_host import find_host  # noqa: E402


@pytest.fixture(autouse=True)
def seeded():
    """What a test draws without a seed of its own is the same each time."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def comfyui():
    """The folder of the ComfyUI on this machine."""
    folder = find_host()
    if folder is None:
        pytest.skip("no ComfyUI found: set COMFYUI_PATH to run this on the real host")
    return folder


@pytest.fixture(scope="session")
def pack(comfyui):
    """Modules of the pack by name, such as `pack("nodes.host.flow_model")`, in this process with the host's classes."""
    from in_process import load_pack, pack_module

    load_pack()
    set_aside()
    return pack_module


@pytest.fixture(scope="session")
def host(comfyui, tmp_path_factory):
    """One running ComfyUI with the pack in it, and what `beside` puts there, for all tests."""
    from beside import put_beside
    from host_server import HostServer

    base = tmp_path_factory.mktemp("host")
    with HostServer(comfyui, base, put_beside(base)) as server:
        yield server


def set_aside():
    """Let the garbage collector pass over what was imported: a million objects, and the host collects at each load."""
    gc.collect()
    if management := sys.modules.get("comfy.model_management"):  # it looks for the models of patchers that are gone
        management.current_loaded_models[:] = [held for held in management.current_loaded_models if held.model]
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def apart():
    """What the files before have imported or compiled is not looked through, again and again, in this one."""
    set_aside()


def pytest_collection_finish():
    set_aside()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what needs the host, and begin with what takes longest, so that two workers end together."""
    for item in items:
        if "comfyui" in getattr(item, "fixturenames", ()):
            item.add_marker("host")
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
