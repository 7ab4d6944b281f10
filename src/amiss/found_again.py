"""What a detector has learned from, found again: by name where it lay, by content elsewhere."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from amiss.data.index import LAYOUTS, Dataset, Source, find_again, index
from amiss.data.stream import record_digest
from amiss.errors import AmissError, DataError
from amiss.methods.base import Detector
from amiss.types import ANOMALOUS, NORMAL, Record


def normals_of(detector: Detector, data: Source | None) -> Dataset:
    """The normal images that the detector has learned from, as a set of its own; those that were
    taught later are not among them."""
    facts = detector.training_facts
    added = set(facts.get("added_normals", ()))
    keys = [key for key in facts["files"] if key not in added]
    learned = {bytes(row) for row in detector.training_digests}
    if data is not None:
        given = index(data)
        records = [r for r in given.records if r.label == NORMAL and record_digest(r) in learned]
        name, root = given.name, given.root
    else:
        root = _root(facts)
        found = set_of(facts)
        by_key = {} if found is None else {found.key(r): r for r in found.records}
        records = [by_key.get(key) or _record(key, root) for key in keys]
        records = [r for r in records if r.path.is_file() or r.path.parent.is_file()]
        name = str(facts["name"])
    if len(records) < len(keys):
        raise DataError(
            f"Of {len(keys)} normal images that the detector has learned from, {len(records)} were "
            f"found{'' if data is not None else f' below {root}'}.",
            hint="Say where they are with data, or fit anew.",
        )
    train = tuple(dataclasses.replace(r, split="train") for r in records)
    return Dataset(name, str(facts["layout"]), root, train)


def defects_of(detector: Detector, data: Source | None) -> list[Record]:
    """The defects that a detector was shown, with the masks that they had; those that are not there
    any more are looked for in `data`, by their content."""
    facts = detector.training_facts
    root = _root(facts)
    keys, all_masks = facts.get("known_defects", ()), facts.get("known_masks", ())
    digests = detector.training_digests[len(detector.training_digests) - len(keys) :]
    elsewhere: dict[bytes, Record] | None = None
    records = []
    for key, masks, its in zip(keys, all_masks, digests, strict=True):
        record = _record(key, root)
        missing = [p for p in (record.path, *map(Path, masks)) if not p.is_file()]
        if not missing:
            mask = tuple(map(Path, masks)) or None
            records.append(dataclasses.replace(record, label=ANOMALOUS, mask=mask))
            continue
        if elsewhere is None:
            given = [] if data is None else index(data).records
            elsewhere = {record_digest(r): r for r in given if r.label == ANOMALOUS}
        moved = elsewhere.get(bytes(its))
        if moved is None or (masks and not moved.masks):
            raise DataError(
                f"The defect {missing[0]}, which the detector was shown, is not there any more.",
                hint="Put it back, name the set that holds it with data, or fit anew.",
            )
        records.append(moved)
    return records


def added_to(detector: Detector) -> list[Record]:
    """The false alarms that a detector was taught."""
    facts = detector.training_facts
    root = _root(facts)
    return [_record(key, root) for key in facts.get("added_normals", ())]


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
