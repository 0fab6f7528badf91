"""The real host's own classes inside this process: imported from the ComfyUI that is found."""

import importlib.util
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from find_host import ROOT, find_host
from workflow import DYNAMIC

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


def opens_with(declared: Any, instead: Mapping[str, Any] | None = None) -> Any:
    """The value that an input opens with on its node, as the host hands it on; None for a socket.

    instead: other values by the inputs' ids, each for inputs of its type alone.
    """
    if declared.io_type == DYNAMIC:
        return opens_at(declared, declared.options[0], instead)
    value = getattr(declared, "default", None)
    if value is None:
        value = next(iter(declared.options or ()), "") if declared.io_type == "COMBO" else value
        value = "" if declared.io_type == "STRING" else value
    other = (instead or {}).get(declared.id)
    return other if other is not None and isinstance(other, type(value)) else value


def opens_at(combo: Any, option: Any, instead: Mapping[str, Any] | None = None) -> dict:
    """The value of a dynamic combo that is set to this option, as the host hands it on."""
    return {combo.id: option.key, **{inner.id: opens_with(inner, instead) for inner in option.inputs}}
