"""What every method must do, as functions of a subject (a detector factory) and a scene (images).

A check fails by an AssertionError. `broken.py` holds, for every check, a detector that it catches.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.errors import AmissError, ExportError, NotFittedError
from amiss.export import export
from amiss.learning.normals import Normals
from amiss.methods import ABOUT
from amiss.methods.base import Detector
from amiss.predict import predict_records
from amiss.run import Run
from amiss.runtime import as_runtime, load
from amiss.types import Prediction, Record
from made_images import DEFECT_PX, spoil, textures, write

HERE = Path(__file__).parent
SIZE = (60, 72)  # of another aspect than any subject's frame, so that `resize` has an effect
NEAR_PX = 8  # how far outside the defect the map's peak may lie: cells and blur have a size


@dataclass(frozen=True)
class Knob:
    """Another value for an option that has no choices or range to take one from.

    `value` may be a function of a folder that makes it. `given` are the options under which this
    one has an effect.
    """

    value: Any
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A method with options that make it quick, at an input size of unequal sides."""

    method: str
    place: str  # "module:Class"
    options: Mapping[str, Any]
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    docs: Path = HERE.parents[1] / "docs" / "methods"

    @property
    def kind(self) -> type[Detector]:
        module, name = self.place.split(":")
        found: type[Detector] = getattr(importlib.import_module(module), name)
        return found

    def make(self, **changes: Any) -> Detector:
        return self.kind(**{**self.options, **changes})  # type: ignore[call-arg]


@dataclass(frozen=True)
class Scene:
    """Folders of textures of `SIZE`: `train` to learn from, `other` alike, `test`.

    `scarred` holds the images of `train` with a defect near their right border, which lies outside
    the mask `roi` (the left three fifths). For methods that learn from some defects, `known` is a
    set with two of them and their masks, and `objects` holds the images of `train` on black.
    """

    folder: Path

    @classmethod
    def build(cls, folder: Path) -> Scene:
        scene = cls(folder)
        textures(scene.train, 8, seed=11, size=SIZE)
        textures(scene.other, 5, seed=12, size=SIZE)
        textures(scene.test, 3, seed=13, size=SIZE)
        textures(scene.known / "train" / "good", 1, seed=14, size=SIZE)
        spots = scene.known / "test" / "spot"
        textures(spots, 2, seed=15, size=SIZE, defects=True, masks=scene.known / "ground_truth")
        stream = ImageStream([Record(p) for p in sorted(scene.train.iterdir())], size=SIZE)
        for batch in stream.batches(1):
            image = batch.images[0].copy()
            spoil(image, int(8 + 4 * batch.indices[0]), 56)
            write(image, scene.scarred / f"{batch.indices[0]:03}.png")
            thing = np.zeros_like(image)
            thing[12:48, 16:60] = batch.images[0][12:48, 16:60]
            write(thing, scene.objects / f"{batch.indices[0]:03}.png")
        roi = np.zeros(SIZE, np.uint8)
        roi[:, :44] = 255
        write(roi, scene.roi)
        return scene

    @property
    def train(self) -> Path:
        return self.folder / "train"

    @property
    def other(self) -> Path:
        return self.folder / "other"

    @property
    def test(self) -> Path:
        return self.folder / "test"

    @property
    def known(self) -> Path:
        return self.folder / "known"

    @property
    def objects(self) -> Path:
        return self.folder / "objects"

    @property
    def scarred(self) -> Path:
        return self.folder / "scarred"

    @property
    def roi(self) -> Path:
        return self.folder / "roi.png"

    def images(self, detector: Detector) -> Tensor:
        """The three test images in the detector's frame, (3, 3, H, W) uint8."""
        records = [Record(path) for path in sorted(self.test.iterdir())]
        stream = ImageStream(records, size=detector.image_size, mode=detector.config.resize_mode)
        (batch,) = stream.batches(3)
        return torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()


Check = Callable[[Subject, Scene], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Register a check under its name."""
    CHECKS[function.__name__] = function
    return function


def score(
    detector: Detector, images: Tensor, roi: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """What `forward` returns for images of the detector's frame, without gradients."""
    with torch.inference_mode():
        prediction: Prediction[Tensor] = detector(images, roi)
    return prediction.score, prediction.anomaly_map


def planted(images: Tensor, top: int, left: int) -> Tensor:
    """The images with a white square in each."""
    spoiled = images.clone()
    spoiled[:, :, top : top + DEFECT_PX, left : left + DEFECT_PX] = 250
    return spoiled


def stored(detector: Detector) -> dict[str, bytes]:
    """Everything that was learned, as bytes by name."""
    found = {
        name: repr((tensor.dtype, tuple(tensor.shape))).encode()
        + tensor.contiguous().numpy().tobytes()
        for name, tensor in detector.artifact()[1].items()
    }
    calibration = detector.calibration
    if calibration is not None:
        found["calibration.scores"] = calibration.scores.tobytes()
        if calibration.map_maxima is not None:
            found["calibration.map_maxima"] = calibration.map_maxima.tobytes()
    return found


def places(detector: Detector) -> Iterator[tuple[int, int]]:
    """Corners (top, left) of defects that lie well apart, in the detector's frame."""
    H, W = detector.image_size
    yield from ((6, 8), (H - DEFECT_PX - 6, W - DEFECT_PX - 10), (H // 2 - 6, W // 2 - 8))


def assert_same(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# --- what a class declares -------------------------------------------------------------------


@check
def capabilities_are_declared(subject: Subject, scene: Scene) -> None:
    kind = subject.kind
    assert kind.id == subject.method, "the id differs from the registry's"
    assert isinstance(kind.paper, str) and kind.paper.strip(), "no paper is named"
    reason = kind.exportable
    assert reason is True or (isinstance(reason, str) and reason.strip()), "no reason is given"
    assert type(kind.localizes) is bool and type(kind.learns_from_anomalies) is bool


@check
def a_page_of_the_docs_exists(subject: Subject, scene: Scene) -> None:
    page = subject.docs / f"{subject.method}.md"
    assert page.is_file() and page.read_text(encoding="utf-8").strip(), f"{page.name} is missing"


@check
def the_constructor_mirrors_the_config(subject: Subject, scene: Scene) -> None:
    parameters = list(inspect.signature(subject.kind.__init__).parameters.values())[1:]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)
    fields = {f.name: f.default for f in dataclasses.fields(subject.kind.config_type)}
    assert {p.name: p.default for p in parameters} == fields
    detector = subject.make()
    assert {k: getattr(detector.config, k) for k in subject.options} == dict(subject.options)


@check
def every_option_says_what_it_is(subject: Subject, scene: Scene) -> None:
    for option in dataclasses.fields(subject.kind.config_type):
        assert option.metadata.get("text", "").strip(), f"{option.name} has no text"


# --- fit -------------------------------------------------------------------------------------


@check
def fit_returns_self(subject: Subject, scene: Scene) -> None:
    detector = subject.make()
    assert detector.fit(scene.train) is detector
    assert detector.is_fitted and not detector.training


@check
def fit_leaves_the_config_alone(subject: Subject, scene: Scene) -> None:
    detector = subject.make()
    before, copy = detector.config, dataclasses.replace(detector.config)
    detector.fit(scene.train)
    assert detector.config is before and detector.config == copy


@check
def the_same_seed_gives_the_same_scores(subject: Subject, scene: Scene) -> None:
    one, other = (subject.make().fit(scene.train, run=Run(seed=3)) for _ in range(2))
    for a, b in zip(score(one, scene.images(one)), score(other, scene.images(other)), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@check
def the_same_seed_gives_the_same_bytes(subject: Subject, scene: Scene) -> None:
    one, other = (subject.make().fit(scene.train, run=Run(seed=3)) for _ in range(2))
    assert stored(one) == stored(other)


@check
def fit_leaves_the_global_random_state_alone(subject: Subject, scene: Scene) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global state is what is watched
    torch_before = torch.get_rng_state()
    numpy_before = np.random.get_state(legacy=False)  # noqa: NPY002
    subject.make().fit(scene.train)
    assert torch.equal(torch.get_rng_state(), torch_before)
    numpy_after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert repr(numpy_after) == repr(numpy_before)


@check
def a_second_fit_equals_a_fresh_one(subject: Subject, scene: Scene) -> None:
    fresh = subject.make().fit(scene.train)
    again = subject.make().fit(scene.other).fit(scene.train)
    assert stored(again) == stored(fresh)
    images = scene.images(fresh)
    assert torch.equal(score(again, images)[0], score(fresh, images)[0])


@check
def fitting_in_other_batches_gives_the_same(subject: Subject, scene: Scene) -> None:
    if subject.kind.learns_from_anomalies:
        pytest.skip("the batch size is part of how this method learns")
    one = subject.make().fit(scene.train, run=Run(batch_size=1))
    other = subject.make().fit(scene.train, run=Run(batch_size=5))
    images = scene.images(one)
    assert_same(score(one, images)[0], score(other, images)[0])


@check
def held_out_scores_are_complete(subject: Subject, scene: Scene) -> None:
    detector = subject.make()
    records = index(scene.train).train
    stream = ImageStream(records, size=detector.image_size, mode=detector.config.resize_mode)
    held_out = detector.learn(Normals(stream), Run())
    n = len(held_out.scores)
    assert 0 < n <= len(records)
    assert len(set(held_out.indices.tolist())) == n
    assert held_out.indices.min() >= 0 and held_out.indices.max() < len(records)
    assert np.isfinite(held_out.scores).all() and held_out.scores.dtype == np.float64
    assert held_out.how.strip()
    for values in (held_out.map_maxima, held_out.map_medians):
        assert (values is not None) == detector.localizes
        if values is not None:
            assert len(values) == n and np.isfinite(values).all() and values.dtype == np.float64


@check
def held_out_scores_belong_to_their_images(subject: Subject, scene: Scene) -> None:
    folder = scene.folder / "one_odd"
    if not folder.exists():
        textures(folder, 7, seed=21, size=SIZE)
        textures(folder / "odd", 1, seed=22, size=SIZE, defects=True)
        (folder / "odd" / "000.png").rename(folder / "003b.png")
    # A method that holds some out, instead of leaving out each, must have drawn the odd one.
    for seed in range(40):
        detector = subject.make().fit(folder, run=Run(seed=seed))
        least = detector.training_facts["least_normal"]
        if any(row["file"] == "003b.png" for row in least):
            break
    else:
        raise AssertionError("one image was never judged")
    first = least[0]
    assert first["file"] == "003b.png", "the one defective training image is not the least normal"
    assert detector.calibration is not None
    assert first["score"] == detector.calibration.scores[-1]


# --- forward ---------------------------------------------------------------------------------


@check
def forward_before_fit_is_a_named_error(subject: Subject, scene: Scene) -> None:
    detector = subject.make()
    assert not detector.is_fitted
    images = scene.images(detector)
    for call in (
        lambda: detector(images),
        lambda: detector.predict(images[0].permute(1, 2, 0).numpy()),
        lambda: detector.save(scene.folder / "never.amiss"),
    ):
        try:
            call()
        except NotFittedError:
            continue
        raise AssertionError("an unfitted detector did its work")
    assert not (scene.folder / "never.amiss").exists()


@check
def shapes_are_as_declared(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train)
    H, W = detector.image_size
    assert H != W, "the options of a subject must have unequal sides"
    images = scene.images(detector)
    for B in (1, 2, 3):
        s, m = score(detector, images[:B])
        assert isinstance(s, Tensor) and s.shape == (B,)
        assert (m is not None) == detector.localizes
        assert m is None or m.shape == (B, H, W)


@check
def types_are_float32(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train)
    s, m = score(detector, scene.images(detector))
    assert s.dtype == torch.float32
    assert m is None or m.dtype == torch.float32


@check
def any_image_has_finite_scores(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train)
    shape = (3, *detector.image_size)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    extremes = [torch.full(shape, v, dtype=torch.uint8) for v in (0, 255)]
    s, m = score(detector, torch.stack([noise, *extremes]))
    assert torch.isfinite(s).all()
    assert m is None or torch.isfinite(m).all()


@check
def forward_leaves_its_input_alone(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train)
    images = scene.images(detector)
    roi = torch.ones((3, *detector.image_size), dtype=torch.bool)
    roi[:, :20] = False
    before = images.clone(), roi.clone()
    score(detector, images, roi)
    assert torch.equal(images, before[0]) and torch.equal(roi, before[1])


@check
def scores_do_not_depend_on_batch_mates(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train)
    images = scene.images(detector)
    images[1] = planted(images[1:2], 6, 8)[0]
    roi = torch.ones((3, *detector.image_size), dtype=torch.bool)
    roi[2, :24] = False
    for rois in (None, roi):
        s, m = score(detector, images, rois)
        for i in range(3):
            alone = score(detector, images[i : i + 1], None if rois is None else rois[i : i + 1])
            assert_same(alone[0], s[i : i + 1])
            if m is not None:
                assert_same(alone[1], m[i : i + 1])


@check
def predict_does_not_depend_on_batch_size_or_order(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train)
    runtime = as_runtime(detector)
    records = [Record(path) for path in sorted(scene.test.iterdir())]
    by_path: dict[Path, tuple[float, Any]] = {}
    for order, batch_size in ((records, 1), (records[::-1], 2), (records, 8)):
        for record, found in predict_records(runtime, order, batch_size=batch_size):
            first = by_path.setdefault(record.path, (found.score, found.anomaly_map))
            assert_same(found.score, first[0])
            assert_same(found.anomaly_map, first[1])
    assert len(by_path) == 3


@check
def a_planted_defect_scores_above_its_clean_twin(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train)
    images = scene.images(detector)
    clean, _ = score(detector, images)
    for top, left in places(detector):
        spoiled, _ = score(detector, planted(images, top, left))
        assert (spoiled > clean).all(), f"the defect at {top}, {left} is not seen"


@check
def the_peak_of_the_map_lies_in_the_defect(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train)
    if not detector.localizes:
        return
    images = scene.images(detector)
    _, W = detector.image_size
    for top, left in places(detector):
        _, maps = score(detector, planted(images, top, left))
        assert maps is not None
        for one in maps:
            y, x = divmod(int(one.argmax()), W)
            assert top - NEAR_PX <= y < top + DEFECT_PX + NEAR_PX, (top, left, y, x)
            assert left - NEAR_PX <= x < left + DEFECT_PX + NEAR_PX, (top, left, y, x)


# --- region of interest ----------------------------------------------------------------------


def left_part(detector: Detector, count: int) -> Tensor:
    """(count, H, W) bool: the left three fifths."""
    H, W = detector.image_size
    roi = torch.zeros((count, H, W), dtype=torch.bool)
    roi[:, :, : 3 * W // 5] = True
    return roi


@check
def a_roi_of_everything_changes_nothing(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train)
    images = scene.images(detector)
    everywhere = torch.ones((3, *detector.image_size), dtype=torch.bool)
    for one, other in zip(
        score(detector, images), score(detector, images, everywhere), strict=True
    ):
        assert_same(one, other)


@check
def the_map_is_zero_outside_the_roi(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train)
    if not detector.localizes:
        return
    images = planted(scene.images(detector), 6, detector.image_size[1] - DEFECT_PX - 6)
    roi = left_part(detector, 3)
    _, maps = score(detector, images, roi)
    assert maps is not None
    assert not maps[~roi].any() and (maps[roi] > 0).any()


@check
def a_defect_outside_the_roi_hardly_counts(subject: Subject, scene: Scene) -> None:
    # Not exactly nothing: the receptive field of a network reaches over the border.
    detector = subject.make().fit(scene.train)
    images, roi = scene.images(detector), left_part(detector, 3)
    _, W = detector.image_size
    clean, _ = score(detector, images, roi)
    inside, _ = score(detector, planted(images, 10, 10), roi)
    outside, _ = score(detector, planted(images, 10, W - DEFECT_PX), roi)
    assert (inside > clean).all()
    assert ((outside - clean).abs() < 0.5 * (inside - clean)).all()


@check
def what_lies_outside_the_roi_is_not_learned(subject: Subject, scene: Scene) -> None:
    # Every training image has the defect, outside the region: inside it must still be a defect.
    clean = subject.make().fit(scene.train, roi=scene.roi)
    scarred = subject.make().fit(scene.scarred, roi=scene.roi)
    images, roi = scene.images(clean), left_part(clean, 3)
    rise = []
    for detector in (clean, scarred):
        before, _ = score(detector, images, roi)
        after, _ = score(detector, planted(images, 10, 10), roi)
        rise.append(after - before)
    assert (rise[1] > 0.5 * rise[0]).all()


@check
def the_roi_of_the_fit_holds_in_predict(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train, roi=scene.roi)
    path = sorted(scene.scarred.iterdir())[0]
    whole = subject.make().fit(scene.train)
    found, everywhere = detector.predict(path), whole.predict(path)
    assert not isinstance(found, list) and not isinstance(everywhere, list)
    assert found.score < everywhere.score
    assert found.anomaly_map is None or not found.anomaly_map[:, 46:].any()


# --- storing ---------------------------------------------------------------------------------

_FRESH = """
import sys, json
import numpy as np, torch
folder, method, place, paths = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
sys.path[:0] = paths
from amiss.methods import METHODS
METHODS.setdefault(method, place)
import amiss
torch.set_num_threads(int(sys.argv[5]))
detector = amiss.load(folder + "/fresh.amiss")
assert not detector.training
with torch.inference_mode():
    found = detector(torch.from_numpy(np.load(folder + "/images.npy")))
maps = np.empty(0) if found.anomaly_map is None else found.anomaly_map.numpy()
p = detector.calibration.p_values(found.score.numpy())
np.savez(folder + "/fresh.npz", score=found.score.numpy(), maps=maps, p=p)
"""


@check
def a_fresh_process_scores_bit_for_bit_alike(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train)
    images = scene.images(detector)
    np.save(scene.folder / "images.npy", images.numpy())
    detector.save(scene.folder / "fresh.amiss")
    paths = json.dumps([str(HERE), str(HERE.parent)])
    arguments = [str(scene.folder), subject.method, subject.place, paths]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _FRESH, *arguments, str(torch.get_num_threads())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    s, m = score(detector, images)
    assert detector.calibration is not None
    with np.load(scene.folder / "fresh.npz") as fresh:
        assert np.array_equal(fresh["score"], s.numpy())
        assert m is None or np.array_equal(fresh["maps"], m.numpy())
        assert np.array_equal(fresh["p"], detector.calibration.p_values(s.numpy()))


@check
def facts_are_plain_json(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train)
    facts, tensors = detector.artifact()
    try:
        again = json.loads(json.dumps(facts, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"the facts are not JSON: {error}") from error
    assert again == facts, "lists and texts only: tuples and numbers as keys come back changed"
    assert all(isinstance(tensor, Tensor) for tensor in tensors.values())


@check
def the_registry_says_what_the_class_says(subject: Subject, scene: Scene) -> None:
    kind = type(subject.make())
    said = ABOUT[kind.id]._asdict()
    assert said == {name: getattr(kind, name) for name in said}


# --- leaving torch ---------------------------------------------------------------------------


@check
def an_export_agrees_or_the_reason_is_given(subject: Subject, scene: Scene) -> None:
    detector = subject.make().fit(scene.train)
    for target, suffix in (("onnx", ".onnx"), ("openvino", ".xml")):
        path = scene.folder / f"part{suffix}"
        path.unlink(missing_ok=True)
        if detector.exportable is not True:
            with pytest.raises(ExportError, match=re.escape(str(detector.exportable))):
                export(detector, path, to=target)
            assert not path.exists()
            continue
        done = export(detector, path, to=target)
        assert done.parity.holds and done.parity.images >= sum(done.parity.batch_sizes)
        exported = load(path)
        for image in sorted(scene.test.iterdir()):
            one, other = detector.predict(image), exported.predict(image)
            assert not isinstance(one, list)
            assert_same(one.score, other.score, 1e-4)
            assert one.is_anomalous == other.is_anomalous and one.p_value == other.p_value
            assert (other.anomaly_map is not None) == detector.localizes
            if other.anomaly_map is not None:
                assert_same(one.anomaly_map, other.anomaly_map, 1e-3)


# --- options ---------------------------------------------------------------------------------


@check
def every_option_has_an_effect(subject: Subject, scene: Scene) -> None:
    dead = [
        option.name
        for option in dataclasses.fields(subject.kind.config_type)
        if not _has_effect(subject, scene, option)
    ]
    assert not dead, f"without any effect: {', '.join(dead)}"


def _has_effect(subject: Subject, scene: Scene, option: dataclasses.Field[Any]) -> bool:
    """Whether some other value changes what is learned, or what is scored."""
    knob = subject.knobs.get(option.name)
    given = {**subject.options, **(knob.given if knob else {})}
    base = None
    for value in _alternatives(subject, scene, option, given):
        try:
            changed = _observe(subject.make(**{**given, option.name: value}), scene)
        except AmissError:  # a value that does not go together with the others
            continue
        if base is None:
            base = _observe(subject.make(**given), scene)
        if changed != base:
            return True
    return False


def _alternatives(
    subject: Subject, scene: Scene, option: dataclasses.Field[Any], given: Mapping[str, Any]
) -> list[Any]:
    """Other values of an option: from the table, from its choices, or near the value in use."""
    knob = subject.knobs.get(option.name)
    if knob is not None and knob.value is not None:
        return [knob.value(scene.folder) if callable(knob.value) else knob.value]
    used = given.get(option.name, option.default)
    choices, low = option.metadata["choices"], option.metadata["low"]
    if choices is not None:
        return [choice for choice in choices if choice != used]
    hint = typing.get_type_hints(subject.kind.config_type)[option.name]
    if isinstance(used, bool):
        return [not used]
    if isinstance(used, int):
        return [used + 1, used + 2, max(1, used // 2), 2 * used + 2]
    if isinstance(used, float):
        return [used / 2, used * 2, used + 1]
    if isinstance(used, tuple) and all(isinstance(part, int) for part in used):
        return [used[::-1], tuple(part + 16 for part in used)]
    if used is None and int in typing.get_args(hint):
        return [int(low or 1) + 4, int(low or 1)]
    raise AssertionError(f"{option.name}: say another value of it in the table of knobs")


def _observe(detector: Detector, scene: Scene) -> tuple[Any, ...]:
    """What was learned and what is scored. No method has an option for time or memory alone; one
    that gets such an option adds here what it changes."""
    if detector.learns_from_anomalies:
        detector.fit(scene.objects, anomalous=scene.known)
    else:
        detector.fit(scene.train)
    found = detector.predict(sorted(scene.test.iterdir())[0])
    assert not isinstance(found, list)
    maps = None if found.anomaly_map is None else found.anomaly_map.tobytes()
    return stored(detector), found.score, maps
