"""Features in a file, where memory is short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from amiss import NFAD
from amiss.fit import fit
from amiss.learning.half_rows import HalfRows
from amiss.run import Run
from made_images import textures


def test_rows_come_back_rounded_to_half_precision() -> None:
    rows = HalfRows(5, [torch.Size([3, 2]), torch.Size([4])])
    random = torch.Generator().manual_seed(0)
    a = 100 * torch.randn(5, 3, 2, generator=random)
    b = torch.randn(5, 4, generator=random)
    assert rows.put(3, [a[3:], b[3:]]) and rows.put(0, [a[:3], b[:3]])
    found = rows.at(np.array([4, 0, 4]))
    for one, other in zip(found, (a, b), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other[[4, 0, 4]].half().float())


def test_values_that_half_precision_does_not_hold_are_refused() -> None:
    rows = HalfRows(1, [torch.Size([2])])
    assert not rows.put(0, [torch.tensor([[1.0, 1e6]])])


def test_a_full_disk_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = HalfRows(1, [torch.Size([2])])

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    assert not rows.put(0, [torch.zeros(1, 2)])
    monkeypatch.setattr("os.pwrite", lambda *_: 1)  # the rest did not find room
    assert not rows.put(0, [torch.zeros(1, 2)])


def test_a_flow_learns_from_them_nearly_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = textures(tmp_path / "good", 10, seed=1)
    options = {
        "backbone": "test_efficientnet", "weights": "random", "image_size": (48, 64),
        "layers": ("4", "8"), "blocks": 2, "epochs": 4, "batch_size": 4, "standardize": True,
    }  # fmt: skip

    def scores(said: list[str]) -> list[float]:
        detector = NFAD(**options)  # type: ignore[arg-type]
        fit(detector, folder, max_false_alarm=0.5, run=Run(say=said.append))
        found = detector.predict(sorted(folder.iterdir()))
        assert isinstance(found, list)
        return [one.score for one in found]

    said: list[str] = []
    whole = scores(said)
    assert not any("half precision" in line for line in said)
    monkeypatch.setattr("amiss.learning.training_images._has_room", lambda *_: False)
    half = scores(said)
    assert any("half precision in a temporary file" in line for line in said)
    assert half != whole
    assert half == pytest.approx(whole, rel=0.02)
    monkeypatch.setattr("amiss.learning.half_rows._SPARE", 1 << 60)
    said.clear()
    assert scores(said) == pytest.approx(whole, rel=1e-3)  # asked again for every batch
    assert not any("half precision" in line for line in said)
