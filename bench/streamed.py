"""A small card on a large one: most of the device is filled, and ComfyUI streams models, as its main.py has it do."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch


def prepare():
    """Before torch first touches the device."""
    import comfy_aimdo.control

    comfy_aimdo.control.init(nvml_pressure=True)


@contextlib.contextmanager
def models_streamed() -> Iterator[None]:
    """Models that are made inside are streamed from its end on.

    Raises SystemExit where the host can't stream.
    """
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher
    import comfy_aimdo.control

    devices = comfy.model_management.get_all_torch_devices()
    if not comfy_aimdo.control.init_devices((device.index, 0) for device in devices):
        raise SystemExit("comfy-aimdo does not work here, so nothing can be streamed.")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    yield
    comfy.memory_management.aimdo_enabled = True


class SmallCard:
    """While it is open, only so many bytes of the device are free. used: of those, at most."""

    def __init__(self, size: int):
        self.size = size
        self.ended = threading.Event()

    def __enter__(self):
        self.filling = torch.empty(torch.cuda.mem_get_info()[0] - self.size, dtype=torch.uint8, device="cuda")
        self.began = torch.cuda.mem_get_info()[0]
        self.least = self.began
        self.watching = threading.Thread(target=self._watch)
        self.watching.start()
        return self

    def _watch(self):
        while not self.ended.is_set():
            self.least = min(self.least, torch.cuda.mem_get_info()[0])
            time.sleep(0.005)

    def __exit__(self, *_: Any):
        self.ended.set()
        self.watching.join()
        del self.filling

    @property
    def used(self) -> int:
        return self.began - self.least
