"""A reward of real size, random weights: what it holds in memory, and what one score with its gradient costs.

    python -m bench.reward --size ViT-H-14 --dtype bf16 --texts 64

Writes a file in open_clip's layout, loads it as SRPO_LoadReward does, encodes texts, scores one picture. The last
line is one JSON object: bytes as measured in this process (CPU: resident without shared pages; CUDA: allocated),
seconds as the least of three.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import open_clip
import psutil
import torch
from safetensors.torch import save_file

from srpo_core.rewards.load import load_reward

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


def write_random(config: dict, dtype: torch.dtype, path: Path, device: str | torch.device = "cpu"):
    """An open_clip CLIP of this configuration, its weights drawn at random, on the device."""
    with torch.device("meta"):
        shapes = open_clip.CLIP(**config).state_dict()
    kind = {"generator": torch.Generator(device).manual_seed(0), "dtype": dtype, "device": device}
    weights = {name: 0.02 * torch.randn(t.shape, **kind) for name, t in shapes.items()}
    weights |= {name: torch.ones_like(t) for name, t in weights.items() if ".ln_" in name and name.endswith("weight")}
    weights["logit_scale"] = torch.tensor(4.6)
    save_file(weights, path)


class Memory:
    """Bytes that this process holds on a device: now, and the most while in `with`."""

    def __init__(self, device: torch.device):
        self.device = device
        self.peak = 0

    def now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        info = psutil.Process().memory_info()
        return info.rss - info.shared

    def settled(self) -> int:
        """Now, once what is no longer used was given back: glibc keeps freed blocks for the next request."""
        gc.collect()
        if hasattr(ctypes.CDLL(None), "malloc_trim"):
            ctypes.CDLL(None).malloc_trim(0)
        return self.now()

    def __enter__(self):
        self.peak = self.now()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while not self.ended.wait(0.002):
            self.peak = max(self.peak, self.now())

    def __exit__(self, *_: Any):
        self.ended.set()
        self.thread.join()


def measure(size: str, dtype: str, device: str, texts: int, pixels: int, folder: Path) -> dict:
    """What the reward costs, stage by stage."""
    config = TOY if size == "toy" else open_clip.get_model_config(size)
    file = folder / "hps_random.safetensors"
    memory = Memory(torch.device(device))
    writer = multiprocessing.get_context("spawn").Process(target=write_random, args=(config, DTYPES[dtype], file))
    writer.start()  # apart, so that what it freed is not taken for ours
    writer.join()
    start = memory.settled()
    reward = load_reward(file, dtype=DTYPES[dtype], features_folder=folder)
    reward.place = lambda tower: next(tower.to(device).parameters()).device
    loaded = memory.settled() - start
    words = [f"word {i % 9}. a picture of number {i // 9}" for i in range(texts)]
    began = time.perf_counter()
    with memory:
        reward.prepare(words)
    encoding = time.perf_counter() - began
    text_peak = memory.peak - start
    cached = memory.settled() - start
    began = time.perf_counter()
    again = load_reward(file, dtype=DTYPES[dtype], features_folder=folder)
    missing = len(again.features.missing(words))
    reading = time.perf_counter() - began
    del again
    picture = torch.rand(1, 3, pixels, pixels, device=device).requires_grad_()
    seconds = []
    with memory:
        for _ in range(3):
            began = time.perf_counter()
            positive, negative = reward.score_many(picture, words[:1], words[1:2])
            torch.autograd.grad((positive - negative).sum(), picture)[0].sum().item()
            seconds.append(time.perf_counter() - began)
    tower = sum(p.numel() * p.element_size() for p in reward.image_tower.parameters())
    return {
        "size": size,
        "dtype": dtype,
        "device": device,
        "pixels": pixels,
        "image_tower_bytes": tower,
        "held_after_loading": loaded,
        "peak_while_encoding_texts": text_peak,
        "held_after_encoding_texts": cached,
        "texts": texts,
        "texts_encoded_seconds": round(encoding, 2),
        "texts_missing_on_next_start": missing,
        "next_start_seconds": round(reading, 2),
        "peak_of_score_with_gradient": memory.peak - start,
        "score_with_gradient_seconds": round(min(seconds), 3),
    }


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.reward", description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="ViT-H-14", help='"toy", or a configuration that open_clip knows')
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--pixels", type=int, default=720, help="side of the picture")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="srpo-bench-") as folder:
        result = measure(**vars(options), folder=Path(folder))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
