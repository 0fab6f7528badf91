"""What a piece of work costs: bytes alive on a device, seconds, floating-point operations, bytes moved."""

import gc
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from srpo_core.run.memory import LiveBytes

PEAKS = {"NVIDIA H200": (990e12, 4.8e12)}  # FLOP/s of bf16 and fp16 (dense), bytes/s, as its maker says
CPU_ATTENTION = {  # torch counts that of GPUs alone
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}


def live_bytes(device: torch.device):
    """A context in which `held`, the bytes alive now, and `peak`, the most since `forget`, count from its start."""
    gc.collect()
    return CudaBytes() if device.type == "cuda" else CpuBytes()


class CudaBytes:
    """What torch allocated."""

    def __enter__(self):
        torch.cuda.synchronize()
        self.began = torch.cuda.memory_allocated()
        self.forget()
        return self

    def __exit__(self, *_: Any):
        torch.cuda.synchronize()

    @property
    def held(self) -> int:
        return torch.cuda.memory_allocated() - self.began

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() - self.began

    def forget(self):
        torch.cuda.reset_peak_memory_stats()


class CpuBytes(LiveBytes):
    def forget(self):
        self.peak = self.held


class Traffic(TorchDispatchMode):
    """`bytes` that operations read and write, were nothing fused; views move none."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None):
        result = function(*args, **(kwargs or {}))
        read = tensors((args, kwargs))
        written = tensors(result)
        view = not function._schema.is_mutable and {map(place, read)} & {map(place, written)}
        if not view:
            self.bytes += sum(t.numel() * t.element_size() for t in read + written)
        return result


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def count(work: Callable) -> tuple[Counter, int]:
    """FLOPs of one call by "linear" (all matrix products and convolutions) and "attention", and bytes moved."""
    with Traffic() as traffic, FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        work()
    flops = Counter()
    for operation, number in counter.get_flop_counts()["Global"].items():
        flops["attention" if "attention" in str(operation) else "linear"] += number
    return flops, traffic.bytes


class Stages:
    """Seconds, and the most bytes alive, from one `mark` to the next, by the name given to the first.

    between: called at each mark, on nobody's time.
    """

    def __init__(self, device: torch.device, memory: Any = None, between: Callable = lambda: None):
        self.device = device
        self.memory = memory
        self.between = between
        self.seconds = defaultdict(float)
        self.peaks = defaultdict(int)
        self.name = None

    def mark(self, name: str | None = None):
        now = clock(self.device)
        if self.name:
            self.seconds[self.name] += now - self.began
            if self.memory:
                self.peaks[self.name] = max(self.peaks[self.name], self.memory.peak)
        self.between()
        if self.memory:
            self.memory.forget()
        self.name = name
        self.began = clock(self.device)


def clock(device: torch.device) -> float:
    """Seconds; on a CPU those that this process had, as another load makes it wait."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(work: Callable, device: torch.device) -> float:
    began = clock(device)
    work()
    return clock(device) - began


def interleaved(works: dict[str, Callable], repeats: int, device: torch.device) -> dict[str, float]:
    """The least seconds of each, taken in turns, so that another load on the machine is shared out; once to warm up."""
    least = dict.fromkeys(works, math.inf)
    for number in range(repeats + 1):
        for name, work in works.items():
            taken = seconds(work, device)
            least[name] = min(least[name], taken) if number else least[name]
    return least


def limits(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s and bytes/s of the device: of its maker where they are known, else those of a large product and copy."""
    if device.type == "cuda" and dtype != torch.float32:
        for name, known in PEAKS.items():
            if torch.cuda.get_device_name(device).startswith(name):
                return known
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    least = interleaved({"product": lambda: a @ a, "copy": a.clone}, 5, device)
    return 2 * side**3 / least["product"], 2 * a.nbytes / least["copy"]
