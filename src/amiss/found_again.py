"""What a detector has learned from, found again: by name where it lay, by content elsewhere."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amiss.data.index import LAYOUTS, Dataset, Source, find_again, index
from amiss.data.stream import record_digest
from amiss.errors import AmissError, DataError
from amiss.methods.base import Detector
from amiss.types import ANOMALOUS, NORMAL, Record


def normals_of(detector: Detector, data: Source | None) -> Dataset:
    """The normal images that the detector has learned from, as a set of its own; those that were
    taught later are not among them.

    Raises DataError where one is not found.
    """
    facts = detector.training_facts
    added = set(facts.get("added_normals", ()))
    wanted = [
        (key, bytes(row))
        for key, row in zip(facts["files"], detector.training_digests, strict=False)
        if key not in added
    ]  # behind the files come the defects
    root, name = _root(facts), str(facts["name"])
    if data is not None:
        given = index(data)
        pools: dict[bytes, list[Record]] = {}
        for record in given.records:
            if record.label == NORMAL:
                pools.setdefault(record_digest(record), []).append(record)
        found = [pools[its].pop(0) if pools.get(its) else None for _, its in wanted]
        name, root = given.name, given.root
    else:
        again = set_of(facts)
        by_key = {} if again is None else {again.key(r): r for r in again.records}
        records = [by_key.get(key) or _record(key, root) for key, _ in wanted]
        found = [r if _is_there(r) else None for r in records]
    missing = [key for (key, _), record in zip(wanted, found, strict=True) if record is None]
    if missing:
        raise DataError(
            f"Of {len(wanted)} normal images that the detector has learned from, "
            f"{len(wanted) - len(missing)} were found below {root}; {missing[0]} was not.",
            hint="Say where they are with data, or fit anew.",
        )
    train = tuple(dataclasses.replace(r, split="train") for r in found if r is not None)
    return Dataset(name, str(facts["layout"]), root, train)


def defects_of(
    detector: Detector, data: Source | None, given: Sequence[Record] = ()
) -> list[Record]:
    """The defects that a detector was shown, with the masks that they had; those that are not there
    any more are looked for in `data` and among those `given`, by their content.

    Raises DataError where one is not found.
    """
    facts = detector.training_facts
    keys, all_masks = facts.get("known_defects", ()), facts.get("known_masks", ())
    digests = detector.training_digests[len(detector.training_digests) - len(keys) :]
    elsewhere = _Elsewhere(data, given)
    records = []
    for key, masks, its in zip(keys, all_masks, digests, strict=True):
        record = _record(key, _root(facts))
        if _is_there(record) and all(Path(mask).is_file() for mask in masks):
            mask = tuple(map(Path, masks)) or None
            records.append(dataclasses.replace(record, label=ANOMALOUS, mask=mask))
            continue
        moved = elsewhere.find(bytes(its))
        if moved is None or (masks and not moved.masks):
            raise _gone("defect", record)
        records.append(dataclasses.replace(moved, label=ANOMALOUS))
    return records


def added_to(detector: Detector, data: Source | None) -> list[Record]:
    """The false alarms that a detector was taught, found as `defects_of` finds defects."""
    facts = detector.training_facts
    digests = dict(zip(facts["files"], detector.training_digests, strict=False))
    elsewhere = _Elsewhere(data)
    records = []
    for key in facts.get("added_normals", ()):
        record = _record(key, _root(facts))
        found = record if _is_there(record) else elsewhere.find(bytes(digests[key]))
        if found is None:
            raise _gone("false alarm", record)
        records.append(dataclasses.replace(found, label=NORMAL))
    return records


class _Elsewhere:
    """Images of a set, by their content; it is read when one is first asked for."""

    def __init__(self, data: Source | None, given: Sequence[Record] = ()) -> None:
        self.data, self.given = data, given
        self.found: dict[bytes, Record] | None = None

    def find(self, content: bytes) -> Record | None:
        if self.found is None:
            records = [*([] if self.data is None else index(self.data).records), *self.given]
            self.found = {record_digest(record): record for record in records}
        return self.found.get(content)


def _is_there(record: Record) -> bool:
    return record.path.is_file() or record.path.parent.is_file()  # in a file of many images


def _gone(what: str, record: Record) -> DataError:
    return DataError(
        f"The {what} {record.path}, which the detector was shown, is not there any more, or its "
        "mask is not.",
        hint="Put it back, name the set that holds it with data, or fit anew.",
    )


def set_of(facts: dict[str, Any]) -> Dataset | None:
    """The set that a detector was fitted on, with its test images, where it can be found."""
    if facts["root"] is None or facts["layout"] not in LAYOUTS:
        return None
    root = Path(facts["root"])
    name = str(facts["name"])
    is_package = facts["layout"] == "elpv" and re.match(r"elpv(:\w+)?( |$)", name) is not None
    try:
        return index(name.split(" ", maxsplit=1)[0] if is_package else root)
    except AmissError:
        return None


def _root(facts: dict[str, Any]) -> Path | None:
    return None if facts["root"] is None else Path(facts["root"])


def _record(key: str, root: Path | None) -> Record:
    path, crop = find_again(key, root)
    return Record(path, NORMAL, split="train", crop=crop)
