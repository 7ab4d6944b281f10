"""The manifest inside a file: JSON of a format that this version knows, or a named error.

No torch here: what a detector says of itself can be read wherever amiss is installed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amiss.errors import ArtifactError

FORMAT = 1
_MAX_HEADER = 64 << 20  # bytes; a header is a table of names, and a hostile one could be any size
_KEYS: dict[str, Any] = {
    "format": int,
    "method": str,
    "config": dict,
    "facts": dict,
    "calibration": dict | None,
    "training": dict,
    "versions": dict,
    "metrics": dict,
}


def parse_manifest(
    path: Path, text: str, *, version: int, kinds: Mapping[str, Any], again: str
) -> dict[str, Any]:
    """The manifest that `text` holds: format number `version`, exactly the keys of `kinds`, each of
    the type there. `again` says how a new file is made.

    Raises:
        ArtifactError: no JSON, another format, or keys and types that do not fit it.
    """
    try:
        manifest: dict[str, Any] = json.loads(text)
        found = manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} has a damaged manifest: {error}.") from error
    if found != version:
        raise ArtifactError(
            f"{path} has format {found}; this version of amiss reads format {version}.",
            hint=f"Install a later amiss, or {again} again.",
        )
    if set(manifest) != set(kinds):
        odd = sorted(set(manifest) ^ set(kinds))
        raise ArtifactError(f"{path} has a manifest that does not fit its format: {odd[0]!r}.")
    for key, kind in kinds.items():
        if not isinstance(manifest[key], kind):
            raise ArtifactError(f"{path} has a manifest whose {key!r} is of the wrong type.")
    return manifest


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of an artifact, without its tensors.

    Raises:
        ArtifactError: missing, damaged, foreign, or of a later format.
    """
    path = Path(path)
    header = _read_header(path)
    text = header.get("__metadata__", {}).get("amiss")
    if not isinstance(text, str):
        raise ArtifactError(f"{path} was not written by amiss.", hint="Give a file made by `fit`.")
    return parse_manifest(path, text, version=FORMAT, kinds=_KEYS, again="fit")


def _read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, its length checked before anything is read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
            if length > min(_MAX_HEADER, size - 8):
                raise ArtifactError(
                    f"{path} is not an artifact, or is cut short: its header claims {length} bytes "
                    f"of a file of {size}.",
                    hint="Copy the file again.",
                )
            header = json.loads(file.read(length))
    except IsADirectoryError:
        raise ArtifactError(f"{path} is a folder, not a file made by `amiss fit`.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read as an artifact: {error}.") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ArtifactError(f"{path} is not an artifact.")
    return header
