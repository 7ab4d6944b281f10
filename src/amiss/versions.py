"""Which software computed a figure."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_WATCHED = ("amiss", "numpy", "pillow", "torch", "timm", "onnxruntime")


def versions() -> dict[str, str]:
    """Python's version and those of the installed packages that shape results."""
    found = {"python": platform.python_version()}
    for name in _WATCHED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
