"""The real host's own classes inside the test process: imported from the ComfyUI that is found, on the CPU."""

import functools
import importlib.util
import sys
from pathlib import Path

from srpo_core.find_host import find_host

ROOT = Path(__file__).parents[1]


@functools.cache
def load_pack():
    """Our pack, loaded as the host loads it: from its folder, under a name that is no identifier."""
    host = str(find_host())
    if host not in sys.path:
        sys.path.insert(0, host)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    name = str(ROOT).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def pack_module(name: str):
    """A module of the pack, such as "nodes.host.flow_model"."""
    return importlib.import_module(f"{load_pack().__name__}.{name}")
