"""Gradients through a model that ComfyUI loaded, without a copy of it.

The host's weights may be of any kind (see frozen.py), and its blocks write into their inputs. So, for as long as a
gradient is wanted, layers have other forwards, and blocks are recomputed, from copies of their inputs.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from ..patcher.forwards import replaced_forwards
from ..patcher.reach import TooMuch, reached
from ..patcher.training_mode import training_mode
from .compiled import are_resident, is_compiled, many_variants, run_compiled, run_on_copies
from .frozen import frozen_forwards, is_norm, needs_gradient
from .guests import CONSTANTS, Guests
from .injection import eject_all, injected
from .kernels import kernels_with_backward
from .ordinary import holds_tensors, ordinary_tensors
from .prefetch import fetching
from .writing import saving


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """How the blocks of a model run where a gradient is wanted.

    checkpointing: they run again for the backward, but for the last `kept_blocks`, whose activations stay in memory.
    offload: the inputs of those that run again wait for it in (pinned) RAM.
    compiled: they are compiled, while all their weights are on the device.
    """

    checkpointing: bool = True
    kept_blocks: int = 0
    offload: bool = False
    compiled: bool = False


USUAL_BLOCKS = BlockSettings()


class _OpenState:
    """While a model is open: how its blocks' weights are fetched, what they run in, and what else takes part."""

    fetch: Callable[[nn.Module], None]
    saving: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    guests: Guests | None = None


def call(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    return forward(*args, **kwargs)


class Differentiable:
    """`root`, a part of a loaded model, which passes gradients while this is open.

    trained: its layers that an adapter sits on.
    settings: how its blocks run; `give_up_compiling` changes it.
    """

    def __init__(self, root: nn.Module, trained: Iterable[nn.Module] = (), settings: BlockSettings = USUAL_BLOCKS):
        self.root = root
        self.trained = set(trained)
        self.settings = settings
        self._state = _OpenState()

    @contextlib.contextmanager
    def open(self, patcher: ModelPatcher, guests: Guests | None = None) -> Iterator[None]:
        """patcher: that loaded the model. Adapters injected into it stay active, on top.

        guests: what runs beside it; gradients pass through that too, to the same ends.
        All is as before on leaving, also by an exception. Raises ValueError, here or in the backward, at a layer of a
        kind that passes no gradient.
        """
        compiles = self.compiles(patcher) and guests is None
        with in_training(), patcher.use_ejected(), contextlib.ExitStack() as stack:
            forwards = self._compiled_forwards if compiles else self._forwards
            if guests:
                forwards = forwards | guests.forwards
                stack.enter_context(guests.constant())
            self._state.guests = guests
            self._state.saving = saving(self.root)
            stack.enter_context(self._state.saving())
            stack.enter_context(replaced_forwards(forwards))
            stack.enter_context(ordinary_tensors(self._beside_layers, quantised=True))
            stack.enter_context(ordinary_tensors(self.root.modules() if compiles or is_compiled(patcher) else ()))
            stack.enter_context(many_variants() if compiles else contextlib.nullcontext())
            self._state.fetch = stack.enter_context(fetching(patcher))
            stack.enter_context(injected(patcher))
            yield

    @contextlib.contextmanager
    def plain(self, patcher: ModelPatcher) -> Iterator[None]:
        """Without gradients, but fetched and compiled as with them, beneath what the host injects meanwhile."""
        eject_all(patcher.model)
        compiles = self.compiles(patcher)
        with contextlib.ExitStack() as stack:
            stack.enter_context(replaced_forwards(self._compiled_blocks if compiles else self._plain_blocks))
            stack.callback(eject_all, patcher.model)
            self._state.fetch = stack.enter_context(fetching(patcher))
            stack.enter_context(many_variants() if compiles else contextlib.nullcontext())
            yield

    def give_up_compiling(self):
        """From now on no block is compiled."""
        self.settings = replace(self.settings, compiled=False)

    def compiles(self, patcher: ModelPatcher) -> bool:
        """Whether blocks are compiled now."""
        if not self.settings.compiled:
            return False
        return are_resident(self._in_blocks, patcher.load_device, patcher.model.get_dtype_inference())

    # Made once: looking through all modules takes as long as a small model's step, and for other forwards torch.compile
    # would begin anew.
    @cached_property
    def _forwards(self) -> dict[nn.Module, Callable]:
        on_copies = partial(self._fetched, run=run_on_copies)
        return self._layers | self._plain_blocks | self._recomputed(on_copies)

    @cached_property
    def _compiled_forwards(self) -> dict[nn.Module, Callable]:
        """Compiled code has no need of frozen layers, but of norms that copy their input, into which blocks write."""
        inside = {module for module in self._in_blocks if not is_norm(module)}
        outside = {module: forward for module, forward in self._layers.items() if module not in inside}
        return outside | self._compiled_blocks | self._recomputed(self._compiled)

    @cached_property
    def _plain_blocks(self) -> dict[nn.Module, Callable]:
        return {block: self._fetched(block) for block in self._blocks}

    @cached_property
    def _compiled_blocks(self) -> dict[nn.Module, Callable]:
        return {block: self._compiled(block) for block in self._blocks}

    def _recomputed(self, on_copies: Callable[[nn.Module], Callable]) -> dict[nn.Module, Callable]:
        """on_copies: makes of a block a forward that leaves its inputs alone."""
        recomputed = self._blocks[: -self.settings.kept_blocks or None] if self.settings.checkpointing else []
        return {
            block: _checkpointed(
                on_copies(block),
                trained=not self.trained.isdisjoint(block.modules()),
                offload=self.settings.offload,
                state=self._state,
            )
            for block in recomputed
        }

    def _fetched(self, block: nn.Module, run: Callable = call) -> Callable:
        """Its forward, by `run`, once its weights are on their way."""
        forward = block.forward  # not the whole model, which a graph may outlive
        state = self._state

        def fetched(*args: Any, **kwargs: Any):
            state.fetch(block)
            with state.saving():
                return run(forward, *args, **kwargs)

        return fetched

    def _compiled(self, block: nn.Module) -> Callable:
        """Its forward, compiled, and on copies of its inputs. All blocks of a kind share one compilation."""
        return partial(run_compiled, block.forward)

    @cached_property
    def _blocks(self) -> list[nn.Module]:
        return list(blocks(self.root))

    @cached_property
    def _in_blocks(self) -> list[nn.Module]:
        return [module for block in self._blocks for module in block.modules()]

    @cached_property
    def _layers(self) -> dict[nn.Module, Callable]:
        return frozen_forwards(self.root)

    @cached_property
    def _beside_layers(self) -> list[nn.Module]:
        """What holds tensors that lie outside of layers (tables, scales, gates, statistics)."""
        return [module for module in self.root.modules() if module not in self._layers and holds_tensors(module)]


@contextlib.contextmanager
def in_training() -> Iterator[None]:
    """With gradients, and the host chooses what has a backward: all that a backward needs where nothing runs again."""
    with training_mode(), kernels_with_backward(), torch.inference_mode(False), torch.enable_grad():
        yield


def blocks(root: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a model: the outermost composite entries of its module lists."""
    listed = isinstance(root, (nn.ModuleList, nn.Sequential))
    for child in root.children():
        composite = any(True for _ in child.children()) and type(child).forward is not nn.Module.forward
        if listed and composite and any(True for _ in child.parameters()):
            yield child
        else:
            yield from blocks(child)


def _own(value: Any) -> Any:
    """What later changes of the model to what it passed to a block don't reach, but for a tensor's content."""
    if isinstance(value, dict):  # block_index and the like
        return dict(value)
    # ComfyUI-GGUF's kind of tensor returns itself for a detached one.
    return value.as_subclass(Tensor) if torch.is_tensor(value) else value


def _checkpointed(forward: Callable, *, trained: bool, offload: bool, state: _OpenState) -> Callable:
    """A block's forward, which leaves its inputs alone, run without a graph, and again with one for its gradient.

    trained: whether there is something to train in it.
    """

    def recomputable(*args: Any, **kwargs: Any):
        values = list(map(_own, (*args, *kwargs.values())))
        hidden = torch.is_grad_enabled() and _hides_gradient(value for value in values if not torch.is_tensor(value))
        if not torch.is_grad_enabled() or not (trained or hidden or any(map(needs_gradient, values))):
            return forward(*args, **kwargs)
        guests = state.guests

        def run(_: Tensor, *values: Any):
            with guests.ordinary() if guests else contextlib.nullcontext():
                return forward(*values[: len(args)], **dict(zip(kwargs, values[len(args) :])))

        # The reentrant kind keeps nothing but the inputs, and has no hook on each tensor that a block saves; but it
        # sees only arguments that are tensors themselves, and one of them must have a gradient.
        one = torch.ones((), requires_grad=True)
        with save_on_cpu(pin_memory=True) if offload else contextlib.nullcontext():
            return checkpoint(run, one, *values, use_reentrant=not hidden, preserve_rng_state=False)

    return recomputable


def _hides_gradient(values: Iterable) -> bool:
    """Whether a tensor inside of one of these, of whatever class, has a gradient, or may have."""
    try:
        return any(map(needs_gradient, reached(values, CONSTANTS)))
    except TooMuch:
        return True
