"""Tensors and their metadata into one safetensors file, which appears complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write under a temporary name in the same folder, then rename.

    Raises OSError or SafetensorError, and leaves nothing behind then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(mode)  # it makes files that nobody but their owner may read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
