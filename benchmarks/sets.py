"""What the scripts do alike with the sets and the options that they are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def title(source: str) -> str:
    """The name of a set without the place where it lies: its protocol stays."""
    protocol, _, place = source.rpartition(":")
    return f"{protocol}:{Path(place).name}" if protocol else Path(place).name


def options_of(config: type[Any], pairs: Sequence[str]) -> dict[str, Any]:
    """Those of the pairs name=value that are options of a method, as the types of their fields."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    given = dict(pair.split("=", 1) for pair in pairs)
    return {name: typed(text, fields[name]) for name, text in given.items() if name in fields}


def typed(text: str, field: dataclasses.Field[Any]) -> Any:
    """An option's text as the type of its field; the parts of a tuple are parted by commas."""
    kind = str(field.type)
    if "tuple" in kind:
        return tuple(type(field.default[0])(part) for part in text.split(","))
    if "bool" in kind:
        return {"true": True, "false": False}[text.lower()]
    return (int if "int" in kind else float if "float" in kind else str)(text)


def drawn(dataset: Any, n_train: int | None, n_test: int | None) -> Any:
    """So many training images, and test images half of which are anomalous; None for all."""
    random = np.random.default_rng(0)
    kept = set()
    for group, count in (
        (dataset.train, n_train),
        *(([r for r in dataset.test if r.label == label], n_test and n_test // 2)
          for label in (0, 1)),
    ):  # fmt: skip
        chosen = group if count is None else [group[i] for i in random.permutation(len(group))]
        kept |= {record.path for record in chosen[:count]}
    records = tuple(r for r in dataset.records if r.path in kept)
    return dataclasses.replace(dataset, records=records)
