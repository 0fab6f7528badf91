"""Importing this makes `srpo_core` importable from the project's folder, whose root must not be on `sys.path`:

ComfyUI has modules called `nodes`, `tests` and more of our names.
"""

import importlib.util
import logging
import sys
from pathlib import Path

from find_host import ROOT

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it warns of a kernel nobody needs here


def _import_from(folder: Path):
    spec = importlib.util.spec_from_file_location(
        folder.name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules[folder.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if "srpo_core" not in sys.modules:
    _import_from(ROOT / "srpo_core")
