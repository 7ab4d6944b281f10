"""The main job on real photographs with real weights: solar cells that come by pip."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import amiss
from amiss.data.index import Dataset, index
from amiss.types import ANOMALOUS, NORMAL, Record


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """`count` of the records, evenly over the whole list: neighbours come from one module."""
    return [records[i * len(records) // count] for i in range(count)]


def a_few(normal: int, test_normal: int, anomalous: int) -> Dataset:
    """A small part of the monocrystalline cells, the same on every machine."""
    whole = index("elpv:mono")
    test = {label: [r for r in whole.test if r.label == label] for label in (NORMAL, ANOMALOUS)}
    records = spread(whole.train, normal) + spread(test[NORMAL], test_normal)
    records += spread(test[ANOMALOUS], anomalous)
    return dataclasses.replace(whole, records=tuple(records))


def test_defective_solar_cells_are_told_from_good_ones(tmp_path: Path) -> None:
    data = a_few(60, 25, 25)
    assert Counter((r.split, r.label) for r in data.records) == {
        ("train", NORMAL): 60, ("test", NORMAL): 25, ("test", ANOMALOUS): 25
    }  # fmt: skip
    detector = amiss.PatchCore(image_size=(96, 96), coreset_ratio=0.05, folds=5)
    detector.fit(data, max_false_alarm=0.1)
    report = amiss.evaluate(amiss.load(detector.save(tmp_path / "solar.amiss")), data)
    assert report.metrics["image_auroc"] > 0.8
    point = report.operating_point
    assert point["recall"] > 0.3
    low, high = point["false_alarm_interval"]
    assert low <= point["false_alarm_rate"] <= high
    assert np.isfinite(report.scores).all()
