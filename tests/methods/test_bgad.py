"""NFAD and BGAD: what they learn from, what is seen, what resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import amiss
from amiss import BGAD, NFAD
from amiss.data.index import index
from amiss.errors import DataError, LeakageError, OptionError
from amiss.fit import fit
from amiss.learning.flow_data import ANOMALOUS_CELL, LEFT_OUT, NORMAL_CELL, on_grid
from amiss.learning.flows import FlowConfig
from amiss.methods.bgad import BGADConfig
from amiss.run import Run
from made_images import textures

TINY: dict[str, Any] = {
    "backbone": "test_efficientnet", "weights": "random", "image_size": (48, 64),
    "layers": ("4", "8"), "blocks": 2, "epochs": 6, "batch_size": 4, "vectors": 128,
    "learning_rate": 2e-3, "standardize": True,
}  # fmt: skip
BG: dict[str, Any] = {**TINY, "normal_epochs": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MVTec layout: 8 normal textures, 3 to judge, 5 with a defect and its mask."""
    root = tmp_path_factory.mktemp("textures")
    textures(root / "train" / "good", 8, seed=1)
    textures(root / "test" / "good", 3, seed=2)
    textures(root / "test" / "spot", 5, seed=3, defects=True, masks=root / "ground_truth")
    return root


def fitted(detector: Any, data: Any, **options: Any) -> Any:
    return fit(detector, data, max_false_alarm=0.5, **options)


def scores(detector: Any, folder: Path) -> list[float]:
    paths = sorted((folder / "test").rglob("*.png"))
    return [detector.predict(path).score for path in paths]


def test_nfad_finds_what_it_has_not_seen(folder: Path) -> None:
    report = amiss.evaluate(fitted(NFAD(**TINY | {"epochs": 20}), folder), folder)
    assert report.metrics["image_auroc"] == 1.0 and report.metrics["pixel_auroc"] > 0.9


def test_the_step_on_normals_alone_is_that_of_nfad() -> None:
    """Section 8, check 3, of one step's loss and gradient."""
    from amiss.learning.flows import normal_cells_loss

    detector = BGAD(**BG, boundary_weight=0.0, synthesis="perlin")
    extractor = detector.config.extractor(0)
    detector.flows = detector.config.flows(extractor, 0)
    labels = torch.tensor([[NORMAL_CELL, NORMAL_CELL, LEFT_OUT, NORMAL_CELL]])
    told = []
    for loss_of in (detector._loss, normal_cells_loss(detector.config)):
        log_p = torch.tensor([[-1.0, -2.0, -9.0, 0.5]], requires_grad=True)
        loss = loss_of(0, log_p, labels)["loss"]
        loss.backward()
        assert log_p.grad is not None
        told.append((loss.detach(), log_p.grad))
    torch.testing.assert_close(told[0], told[1])
    assert float(told[0][0]) == pytest.approx(2.5 / 3)
    assert told[0][1].tolist()[0] == pytest.approx([-1 / 3, -1 / 3, 0, -1 / 3])


def test_what_is_beyond_the_boundary_is_pushed(folder: Path) -> None:
    """Of a step: anomalous vectors are moved by gradients, and what is left out by none."""
    for boundary in ("global", "batch"):
        detector = BGAD(**BG, synthesis="perlin", boundary=boundary, beta=0.0)
        detector.flows = detector.config.flows(detector.config.extractor(0), 0)
        detector.flows.level(0).boundary.fill_(-0.2)
        log_p = torch.tensor([[-1.0, -3.0, -1.0, -1.0]], requires_grad=True)
        labels = torch.tensor([[NORMAL_CELL, NORMAL_CELL, ANOMALOUS_CELL, LEFT_OUT]])
        losses = detector._loss(0, log_p, labels)
        losses["loss"].backward()
        assert log_p.grad is not None
        gradient = log_p.grad[0].tolist()
        assert gradient[2] > 0 and gradient[3] == 0 and gradient[0] < 0
        assert (gradient[1] < gradient[0]) == (boundary == "global")  # below -0.2, but the least


def test_fewer_vectors_are_on_the_wrong_side_than_without_the_boundary(folder: Path) -> None:
    beyond = {}
    for weight in (0.0, 1.0):
        options = BG | {"standardize": False, "epochs": 12, "boundary_weight": weight}
        detector = fitted(BGAD(**options), f"multi_class:3:{folder}")
        assert detector.facts["defects"] == 3
        beyond[weight] = detector.facts["losses"]["beyond"][-1]
    assert beyond[1.0] < 0.8 * beyond[0.0]


def test_what_was_shown_is_not_judged(folder: Path) -> None:
    detector = fitted(BGAD(**BG), f"multi_class:3:{folder}")
    assert len(detector.training_facts["known_defects"]) == 3
    report = amiss.evaluate(detector, folder)
    assert len(report.judged) == 3 + 2
    known = {str(folder / key) for key in detector.training_facts["known_defects"]}
    assert not known & {str(row.path) for row in report.judged}
    with pytest.raises((LeakageError, DataError)):
        amiss.evaluate(detector, [r for r in index(folder).records if str(r.path) in known])


def test_defects_may_come_from_a_folder_of_their_own(folder: Path, tmp_path: Path) -> None:
    spots = sorted((folder / "test" / "spot").glob("*.png"))[:2]
    for path in spots:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    detector = fitted(BGAD(**BG), folder / "train" / "good", anomalous=tmp_path)
    assert detector.facts["defects"] == 2 and detector.facts["unmasked_defects"] == 2
    as_list = fitted(BGAD(**BG), folder / "train" / "good", anomalous=spots)
    assert scores(as_list, folder) == scores(detector, folder)


def test_defects_without_masks_are_placed_by_the_map_and_it_is_said(folder: Path) -> None:
    said: list[str] = []
    spots = sorted((folder / "test" / "spot").glob("*.png"))[:2]
    detector = BGAD(**BG | {"normal_epochs": 5, "epochs": 8})
    fitted(detector, folder, anomalous=spots, run=Run(say=said.append))
    assert any("2 of 2 defects have no mask" in line for line in said)


def test_proposed_masks_lie_on_the_defects(folder: Path) -> None:
    from amiss.data.stream import ImageStream
    from amiss.learning.flow_data import split
    from amiss.learning.known_defects import KnownDefects
    from amiss.learning.mixed_features import propose_masks
    from amiss.learning.normals import Normals

    detector = fitted(NFAD(**TINY | {"epochs": 20}), folder)
    flows, extractor = detector.flows, detector.extractor
    dataset = index(folder)
    spots = [r for r in dataset.test if r.label == 1]
    stream = ImageStream(dataset.train, size=(48, 64))
    normals = split(Normals(stream, len(dataset.train)), extractor, Run()).data

    def proposed(records: list[amiss.Record]) -> KnownDefects:
        defects = KnownDefects(ImageStream(records, size=(48, 64)))
        propose_masks(flows, extractor, defects, normals)
        return defects

    true = proposed(spots)
    assert true.is_proposed == [False] * 5
    defects = proposed([amiss.Record(r.path, 1) for r in spots])
    assert defects.is_proposed == [True] * 5
    for truth, found in zip(true.masks, defects.masks, strict=True):
        assert truth is not None and found is not None
        assert 0.0019 <= found.mean() <= 0.101
        assert (found & truth).sum() > 0.4 * truth.sum()  # by chance a tenth
    # of an image without a defect next to nothing is taken
    bare = proposed([amiss.Record(r.path, 1) for r in dataset.train[:2]])
    assert all(mask is not None and mask.mean() < 0.005 for mask in bare.masks)


def test_nothing_to_learn_from_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="learns from known defects, and there is none") as caught:
        fitted(BGAD(**BG), folder)
    assert "perlin" in str(caught.value) and "nfad" in str(caught.value)
    detector = fitted(BGAD(**BG, synthesis="perlin"), folder)
    assert detector.facts["defects"] == 0
    with pytest.raises(OptionError, match="nfad learns from normal images alone"):
        fitted(NFAD(**TINY), folder, anomalous=folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"normal_epochs": 6}, "leave none for the defects"),
        ({"synthesis": "perlin", "transforms": 2}, "transforms=2 has no effect"),
        ({"synthesis": "none", "foreground": "all"}, "foreground='all' has no effect"),
        ({"beta": 0.9}, "out of range"),
        ({"boundary": "local"}, "not known"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        BGAD(**BG | options)


def test_labels_come_to_the_cells_from_the_nearest_pixel() -> None:
    labels = torch.zeros(1, 8, 12, dtype=torch.int8)
    labels[0, 4, 6] = 1
    assert on_grid(labels, (2, 2)).tolist() == [[0, 0, 0, 1]]
    assert on_grid(labels, (4, 3)).tolist()[0] == [0] * 12
    labels[0, 4:, 8:] = LEFT_OUT
    assert on_grid(labels, (2, 3)).tolist() == [[0, 0, 0, 0, 0, -1]]


def test_a_touched_cell_is_anomalous_and_those_beside_it_are_left_out() -> None:
    labels = torch.zeros(1, 8, 20, dtype=torch.int8)
    labels[0, 7, 15] = ANOMALOUS_CELL  # the last pixel of the upper cell to its left above
    assert on_grid(labels, (2, 5)).tolist() == [[0] * 10]
    found = on_grid(labels, (2, 5), touched=True).unflatten(1, (2, 5))[0]
    assert found.tolist() == [[0, 0, -1, -1, -1], [0, 0, -1, 1, -1]]
    # a cell that was left out stays so, and a region hides what it hides
    labels[0, :, :16] = torch.where(labels[0, :, :16] == 0, LEFT_OUT, labels[0, :, :16])
    roi = torch.ones(1, 8, 20, dtype=torch.bool)
    roi[0, :4] = False
    found = on_grid(labels, (2, 5), roi, touched=True).unflatten(1, (2, 5))[0]
    assert found.tolist() == [[-1] * 5, [-1, -1, -1, -1, -1]]


def test_touched_cells_change_what_is_learned(folder: Path) -> None:
    found = [
        fitted(BGAD(**BG, cells=cells), f"multi_class:3:{folder}")
        for cells in ("nearest", "touched")
    ]
    first, second = (torch.cat([w.flatten() for w in d.flows.parameters()]) for d in found)
    assert not torch.equal(first, second)


def test_the_learning_rate_warms_up_and_falls() -> None:
    config = FlowConfig(learning_rate=1.0)
    rates = [config.rate(x / 100) for x in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[100] == pytest.approx(1e-3)
    assert max(rates) == rates[8] and rates[:9] == sorted(rates[:9])
    assert rates[8:] == sorted(rates[8:], reverse=True)
    assert rates[50] == pytest.approx(0.5005)


def test_two_thirds_of_a_batch_are_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    from amiss.learning.mixed_features import MixedFeatures

    mixed = MixedFeatures.__new__(MixedFeatures)
    mixed.share = BGADConfig().anomalous_share
    assert [mixed.normals_of(n) for n in (2, 3, 4, 32)] == [1, 2, 3, 21]
    monkeypatch.setattr("amiss.learning.mixed_features.rank_and_size", lambda: (0, 2))
    assert [mixed.normals_of(n) for n in (4, 32)] == [4, 20]  # shared by two processes


def test_two_processes_descend_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of what two processes say of their halves is what one says of the whole."""
    from amiss.learning.flows import _parts

    detector = BGAD(**BG, synthesis="perlin")
    detector.flows = detector.config.flows(detector.config.extractor(0), 0)
    detector.flows.level(0).boundary.fill_(-0.2)
    log_p = torch.linspace(-4.0, 0.0, 24).view(4, 6)
    labels = torch.arange(24).view(4, 6).remainder(2).to(torch.int8)
    whole = detector._loss(0, log_p, labels)
    features = torch.zeros(4, 96, 3)
    places = len(_parts(features, detector.config))
    for module in ("learning.flows", "methods.bgad"):
        monkeypatch.setattr(f"amiss.{module}.rank_and_size", lambda: (0, 2))
    halves = [detector._loss(0, log_p[at], labels[at]) for at in (slice(0, 2), slice(2, 4))]
    for name, value in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, value)
    assert float(whole["beyond"]) > 0
    assert len(_parts(features[:2], detector.config)) == places == 3


def test_an_interrupted_training_ends_as_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    source = f"multi_class:3:{folder}"
    whole = fitted(BGAD(**BG), source)
    for stage in ("normal features", "boundary"):
        partial = tmp_path / f"{stage}.partial"
        taken: list[tuple[str, int]] = []

        def stop(name: str, done: int, total: int, at: str = stage) -> None:
            if name == at and done == 1:
                raise KeyboardInterrupt

        def watch(name: str, done: int, total: int, taken: Any = taken) -> None:
            taken.append((name, done))

        with pytest.raises(KeyboardInterrupt):
            fitted(BGAD(**BG), source, run=Run(partial=partial, progress=stop))
        resumed = fitted(BGAD(**BG), source, run=Run(partial=partial, progress=watch))
        assert (stage, 1) not in taken and (stage, 2) in taken
        assert (stage == "boundary") == (("normal features", 2) not in taken)
        assert scores(resumed, folder) == scores(whole, folder)


def test_a_defect_outside_of_the_region_of_interest_is_not_pasted(tmp_path: Path) -> None:
    from amiss.data.stream import ImageStream
    from amiss.learning.known_defects import KnownDefects
    from made_images import spoil, texture, write

    image = texture(np.random.default_rng(0))
    mask = spoil(image, 10, 60)
    path = write(image, tmp_path / "x.png")
    white = write(mask.astype(np.uint8) * 255, tmp_path / "x_mask.png")
    sources = []
    for width in (50, 66, 80):
        inside = np.zeros((60, 80), np.uint8)
        inside[:, :width] = 255
        roi = write(inside, tmp_path / f"roi{width}.png")
        stream = ImageStream([amiss.Record(path, 1, white)], size=(60, 80), roi=roi)
        sources.append([d.mask.sum() for d in KnownDefects(stream).sources()])
    assert sources == [[], [14 * 6], [14 * 14]]


def test_an_image_is_not_learned_as_normal_and_as_a_defect(folder: Path) -> None:
    good = sorted((folder / "train" / "good").glob("*.png"))[0]
    with pytest.raises(DataError, match="1 images are given as normal and as defects"):
        fitted(BGAD(**BG), folder, anomalous=[good])
