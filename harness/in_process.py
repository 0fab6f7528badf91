"""The real host's own classes inside this process: imported from the ComfyUI that is found."""

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from find_host import ROOT, find_host

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def load_pack(cpu: bool = True):
    """Our pack, loaded as the host loads it: from its folder, under a name that is no identifier.

    cpu: whether the host shall leave a GPU alone; the first call of a process decides.
    """
    name = str(ROOT).replace(".", "_x_")
    if name in sys.modules:
        return sys.modules[name]
    sys.path.insert(0, str(find_host()))
    import comfy.cli_args

    comfy.cli_args.args.cpu = cpu
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def pack_module(name: str):
    """A module of the pack, such as "nodes.host.flow_model"."""
    return importlib.import_module(f"{load_pack().__name__}.{name}")


def new_adapter(patcher: "ModelPatcher", **settings: Any):
    """An adapter of these AdapterSettings for the MODEL."""
    chosen = pack_module("nodes.host.adapters.settings").AdapterSettings(**settings)
    return pack_module("nodes.host.adapters.adapter").Adapter(patcher, chosen)


def block_settings(**settings: Any):
    """BlockSettings of the pack."""
    return pack_module("nodes.host.gradients.differentiable").BlockSettings(**settings)


def new_flow(patcher: "ModelPatcher", sampling: Any = None, guidance: float | None = None, **blocks: Any):
    """A HostFlow of the MODEL, its blocks by these BlockSettings."""
    return pack_module("nodes.host.flow_model").HostFlow(patcher, sampling, guidance, blocks=block_settings(**blocks))
