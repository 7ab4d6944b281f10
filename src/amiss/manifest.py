"""The manifest inside a file: JSON of a format that this version knows, or a named error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amiss.errors import ArtifactError


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
