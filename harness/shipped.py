"""What the Comfy Registry's archive has of the pack."""

import os
from collections.abc import Iterator
from pathlib import Path

from find_host import ROOT
from pathspec import GitIgnoreSpec

LISTS = (".gitignore", ".comfyignore")


def shipped(root: Path = ROOT) -> Iterator[str]:
    """The paths of the files in the archive, from the pack's folder: all but what its ignore files name."""
    lines = [line for name in LISTS for line in (root / name).read_text("utf-8").splitlines()]
    ignored = GitIgnoreSpec.from_lines([".git", *lines])
    for folder, folders, files in os.walk(root):
        here = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if not ignored.match_file(f"{(here / name).as_posix()}/")]
        paths = ((here / name).as_posix() for name in files)
        yield from (path for path in paths if not ignored.match_file(path))
