"""What a detector has learned from, found again: by name where it lay, by content elsewhere."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from amiss.data.index import LAYOUTS, Dataset, Source, find_again, index
from amiss.data.stream import Contents, is_there, record_digest
from amiss.errors import AmissError, DataError
from amiss.methods.base import Detector
from amiss.run import Run
from amiss.types import ANOMALOUS, NORMAL, Record


class _Learned(NamedTuple):
    """An image that was learned from: its name, its digest, and its own region of interest."""

    key: str
    digest: bytes
    roi: str | None


def normals_of(detector: Detector, data: Source | None) -> Dataset:
    """The normal images that the detector has learned from, as a set of its own; those that were
    taught later are not among them.

    Raises DataError where one is not found, or is another image now.
    """
    facts = detector.training_facts
    added = set(facts.get("added_normals", ()))
    wanted = [one for one in _learned(detector, facts["files"]) if one.key not in added]
    root, name = _root(facts), str(facts["name"])
    if data is not None:
        given = index(data)
        pools: dict[bytes, list[Record]] = {}
        for record in given.records:
            if record.label == NORMAL:
                pools.setdefault(record_digest(record), []).append(record)
        found = [pools[one.digest].pop(0) if pools.get(one.digest) else None for one in wanted]
        name, root = given.name, given.root
    else:
        again = set_of(facts)
        by_key = {} if again is None else {again.key(r): r for r in again.records}
        records = [by_key.get(one.key) or _record(one, root) for one in wanted]
        found = [r if _is(r, one) else None for r, one in zip(records, wanted, strict=True)]
    missing = [one.key for one, record in zip(wanted, found, strict=True) if record is None]
    if missing:
        raise DataError(
            f"Of {len(wanted)} normal images that the detector has learned from, "
            f"{len(wanted) - len(missing)} were found below {root}; {missing[0]} was not, or is "
            "another image now.",
            hint="Say where they are (data=SET, --data SET), or fit anew.",
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
    elsewhere = _Elsewhere(data, given)
    records = []
    for one, masks in zip(_learned(detector, keys, from_the_end=True), all_masks, strict=True):
        record = _record(one, _root(facts))
        if _is(record, one) and all(Path(mask).is_file() for mask in masks):
            mask = tuple(map(Path, masks)) or None
            records.append(dataclasses.replace(record, label=ANOMALOUS, mask=mask))
            continue
        moved = elsewhere.find(one)
        if moved is None or (masks and not moved.masks):
            raise _gone("defect", record)
        records.append(dataclasses.replace(moved, label=ANOMALOUS))
    return records


def added_to(detector: Detector, data: Source | None) -> list[Record]:
    """The false alarms that a detector was taught, found as `defects_of` finds defects."""
    facts = detector.training_facts
    added = set(facts.get("added_normals", ()))
    elsewhere = _Elsewhere(data)
    records = []
    for one in _learned(detector, facts["files"]):
        if one.key not in added:
            continue
        record = _record(one, _root(facts))
        found = record if _is(record, one) else elsewhere.find(one)
        if found is None:
            raise _gone("false alarm", record)
        records.append(dataclasses.replace(found, label=NORMAL))
    return records


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


def each_once(records: Sequence[Record]) -> list[Record]:
    """Without those whose content came before; of several, the last one with a mask."""
    found: dict[bytes, Record] = {}
    for record in records:
        its = record_digest(record)
        if its not in found or record.masks:
            found[its] = record
    return list(found.values())


def unless_in(
    records: Sequence[Record], others: Sequence[Record], name: str, run: Run
) -> list[Record]:
    """Without those that are among `others`: what was said last, or of the fit itself, holds."""
    if not records or not others:
        return list(records)
    contents = {record_digest(record) for record in others}
    rest = [record for record in records if record_digest(record) not in contents]
    if len(rest) < len(records):
        run.say(f"{len(records) - len(rest)} of the {name} were learned as the opposite, or as "
                "normal, and are left out")  # fmt: skip
    return rest


def without(original: Dataset, missed: Sequence[Record], run: Run) -> Dataset:
    """The normal images without those that turn out to be defects: a likely reason for a miss."""
    if not missed:
        return original
    shown = Contents(missed)
    rest = tuple(record for record in original.records if record not in shown)
    if len(rest) < len(original.records):
        run.say(
            f"{len(original.records) - len(rest)} of the missed defects were among the normal "
            "images of the fit, and are left out of those from now on"
        )
    return dataclasses.replace(original, records=rest)


class _Elsewhere:
    """Images of a set, by their content; it is read when one is first asked for."""

    def __init__(self, data: Source | None, given: Sequence[Record] = ()) -> None:
        self.data, self.given = data, given
        self.found: dict[bytes, Record] | None = None

    def find(self, one: _Learned) -> Record | None:
        if self.found is None:
            records = [*([] if self.data is None else index(self.data).records), *self.given]
            self.found = {record_digest(record): record for record in records}
        return self.found.get(one.digest)


def _learned(
    detector: Detector, keys: Sequence[str], *, from_the_end: bool = False
) -> list[_Learned]:
    """The files that were learned from, or the defects, whose digests come behind those."""
    digests = detector.training_digests
    rois = detector.training_facts.get("rois") or [None] * len(digests)
    first = len(digests) - len(keys) if from_the_end else 0
    return [
        _Learned(key, bytes(digests[number]), rois[number])
        for number, key in enumerate(keys, first)
    ]


def _is(record: Record, one: _Learned) -> bool:
    """Whether it is there, and the same image still."""
    return is_there(record.path) and record_digest(record) == one.digest


def _gone(what: str, record: Record) -> DataError:
    return DataError(
        f"The {what} {record.path}, which the detector was shown, is not there any more or another "
        "image now, or its mask is gone.",
        hint="Put it back, name the set that holds it and the normal images (data, --data), "
        "give a defect again (anomalous=..., --anomalous ...), or fit anew.",
    )


def _root(facts: dict[str, Any]) -> Path | None:
    return None if facts["root"] is None else Path(facts["root"])


def _record(one: _Learned, root: Path | None) -> Record:
    path, crop = find_again(one.key, root)
    roi = None if one.roi is None else Path(one.roi)
    return Record(path, NORMAL, split="train", crop=crop, roi=roi)
