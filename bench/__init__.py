"""Benchmarks. Those that need a ComfyUI find it, or start it, with the harness's modules."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "harness"))
