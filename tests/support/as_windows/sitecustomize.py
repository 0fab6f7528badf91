"""Windows' rule, kept on Linux: a file that is mapped into memory can be neither replaced nor deleted.

Python imports this at its start where this folder is on PYTHONPATH, so that it also binds the processes of tests.
"""

import os


def is_mapped(path) -> bool:
    """Whether this process has the file mapped."""
    path = os.path.realpath(path)
    if not os.path.isfile(path):
        return False
    with open("/proc/self/maps") as maps:
        return any(line.rstrip("\n").endswith(" " + path) for line in maps)


def refusing(function, which: int):
    """The function of `os`, which refuses a mapped file as its argument number `which`."""

    def called(*paths, **options):
        if not options and is_mapped(paths[which]):
            raise PermissionError(13, "a file that is mapped can't be replaced on Windows", os.fspath(paths[which]))
        return function(*paths, **options)

    return called


if os.path.exists("/proc/self/maps"):
    os.replace = refusing(os.replace, 1)
    os.rename = refusing(os.rename, 1)
    os.unlink = refusing(os.unlink, 0)
    os.remove = refusing(os.remove, 0)
