"""Protocols for methods that learn from a few defects: which of a set's defects they are shown.

`multi_class:A:SOURCE` shows A anomalous test images of all kinds; `one_class:KIND/A:SOURCE` shows A
of one kind, and none of that kind is left in the test. Another draw than that of seed 0 is
`multi_class:A@1:SOURCE`. What is shown never comes back to the test, and every method is judged on
the images that are left. As Yao et al., CVPR 2023, arXiv 2207.01463.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from amiss.errors import DataError
from amiss.types import ANOMALOUS, Record

if TYPE_CHECKING:
    from amiss.data.index import Dataset


class AskedKnown(NamedTuple):
    """What a source asks for: `number` known anomalies, of one `kind` or of all (None)."""

    kind: str | None
    number: int
    seed: int
    source: str

    @property
    def protocol(self) -> str:
        """The name of the protocol."""
        return "multi_class" if self.kind is None else "one_class"

    @property
    def title(self) -> str:
        """What stands behind the name of the set."""
        of = "" if self.kind is None else f"{self.kind}/"
        seed = f" seed {self.seed}" if self.seed else ""
        return f"{self.protocol} {of}{self.number}{seed}"


def asked_known(source: str) -> AskedKnown | None:
    """What a source asks for; None where it names neither protocol."""
    found = re.fullmatch(r"multi_class:(\d+)(?:@(\d+))?:(.+)", source, re.DOTALL)
    if found is not None:
        return AskedKnown(None, int(found[1]), int(found[2] or 0), found[3])
    found = re.fullmatch(r"one_class:([^:]+)/(\d+)(?:@(\d+))?:(.+)", source, re.DOTALL)
    if found is not None:
        return AskedKnown(found[1], int(found[2]), int(found[3] or 0), found[4])
    return None


def with_known(dataset: Dataset, asked: AskedKnown) -> Dataset:
    """The set with some anomalous test images moved to the training.

    Raises DataError where there are fewer than asked for, or none would be left to judge.
    """
    anomalous = [r for r in dataset.test if r.label == ANOMALOUS]
    if asked.kind is None:
        known, left_out = _evenly(dataset, anomalous, asked), set[Record]()
    else:
        known, left_out = _of_one_kind(dataset, anomalous, asked)
    if len(known) + len(left_out - set(known)) == len(anomalous):
        raise DataError(
            f"{dataset.name}: {asked.title} leaves no anomalous image to be judged.",
            hint="Ask for fewer.",
        )
    shown = set(known)
    records = []
    for record in dataset.records:
        if record in shown:
            records.append(replace(record, split="train"))
        elif record not in left_out:
            records.append(record)
    return replace(
        dataset, name=f"{dataset.name} {asked.title}", records=tuple(records),
        notes=(*dataset.notes, f"{len(known)} anomalous images are known, and not judged."),
    )  # fmt: skip


def _evenly(dataset: Dataset, anomalous: Sequence[Record], asked: AskedKnown) -> list[Record]:
    """As many of every kind as there can be; the rest of any kind."""
    rng = np.random.default_rng(asked.seed)
    kinds = sorted({r.kind or "" for r in anomalous})
    pools = [_drawn(dataset, [r for r in anomalous if (r.kind or "") == k], rng) for k in kinds]
    each = asked.number // max(1, len(kinds))
    known = [record for pool in pools for record in pool[:each]]
    rest = _drawn(dataset, [record for pool in pools for record in pool[each:]], rng)
    return _enough([*known, *rest[: asked.number - len(known)]], dataset, asked)


def _of_one_kind(
    dataset: Dataset, anomalous: Sequence[Record], asked: AskedKnown
) -> tuple[list[Record], set[Record]]:
    """The known ones, and all of their kind."""
    kinds = sorted({r.kind for r in anomalous if r.kind})
    if asked.kind not in kinds:
        raise DataError(
            f"{dataset.name} has no anomalous test images of the kind {asked.kind!r}.",
            hint=f"Its kinds are {', '.join(kinds)}." if kinds else "Its kinds have no names.",
        )
    pool = [r for r in anomalous if r.kind == asked.kind]
    known = _drawn(dataset, pool, np.random.default_rng(asked.seed))[: asked.number]
    return _enough(known, dataset, asked), set(pool)


def _drawn(dataset: Dataset, records: Sequence[Record], rng: np.random.Generator) -> list[Record]:
    """In an order that depends on their names and on chance, not on where they lie."""
    ordered = sorted(records, key=dataset.key)
    return [ordered[i] for i in rng.permutation(len(ordered))]


def _enough(known: list[Record], dataset: Dataset, asked: AskedKnown) -> list[Record]:
    if not asked.number:
        raise DataError(f"{dataset.name}: {asked.title} asks for none.", hint="Ask for 1 or more.")
    if len(known) < asked.number:
        raise DataError(
            f"{dataset.name}: {asked.title} asks for {asked.number} known anomalies, and there are "
            f"{len(known)}.",
            hint="Ask for fewer.",
        )
    return known
