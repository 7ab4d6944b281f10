"""A detector as a graph: what it holds, that it agrees, that one that does not is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import amiss
from amiss.engines import ExportedDetector
from amiss.errors import (
    ArtifactError,
    DataError,
    ExportError,
    MissingDependencyError,
    OptionError,
)
from amiss.evaluation import evaluate
from amiss.export import export, exporting
from amiss.export.parity import measure
from amiss.exported_file import read_manifest, rewrite
from amiss.methods.patchcore import PatchCore
from amiss.recalibrate import recalibrate
from amiss.runtime import TorchRuntime
from made_images import texture, write


@pytest.fixture(scope="module")
def fitted(artifact: Path) -> PatchCore:
    loaded: PatchCore = amiss.load(artifact)
    return loaded


@pytest.fixture(scope="module")
def part(fitted: PatchCore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared detector as ONNX, which nothing may change."""
    return export(fitted, tmp_path_factory.mktemp("exported") / "part.onnx").path


def pictures(folder: Path, count: int = 4, size: tuple[int, int] = (60, 80)) -> list[Path]:
    rng = np.random.default_rng(77)
    return [write(texture(rng, size), folder / f"{i}.png") or folder / f"{i}.png"
            for i in range(count)]  # fmt: skip


def agree(one: Any, other: Any, *, score: float = 1e-4) -> None:
    assert other.score == pytest.approx(one.score, rel=score)
    assert other.is_anomalous == one.is_anomalous
    top = float(one.anomaly_map.max())
    assert np.abs(one.anomaly_map - other.anomaly_map).max() <= 1e-3 * top


def test_predict_says_the_same(fitted: PatchCore, part: Path, tmp_path: Path) -> None:
    exported = amiss.load(part)
    assert isinstance(exported, ExportedDetector)
    paths = pictures(tmp_path)
    for one, other in zip(fitted.predict(paths), exported.predict(paths), strict=True):
        agree(one, other)
        assert other.path == one.path and other.p_value == one.p_value
        assert [r.box for r in other.regions] == [r.box for r in one.regions]


def test_the_graph_takes_any_batch(part: Path) -> None:
    exported = amiss.load(part)
    images = np.stack([texture(np.random.default_rng(i), (48, 64)) for i in range(7)])
    together = exported.run(images, None)
    for i in range(7):
        alone = exported.run(images[i : i + 1], None)
        assert alone.score[0] == pytest.approx(together.score[i], rel=1e-5)
        np.testing.assert_allclose(alone.anomaly_map[0], together.anomaly_map[i], rtol=1e-4)


def test_the_contract_of_inputs_and_outputs(part: Path) -> None:
    graph = onnx.load(part).graph
    kinds = {v.name: v.type.tensor_type for v in (*graph.input, *graph.output)}
    assert [v.name for v in graph.input] == ["images"]
    assert [v.name for v in graph.output] == ["score", "anomaly_map"]
    assert kinds["images"].elem_type == onnx.TensorProto.UINT8
    sides = [d.dim_param or d.dim_value for d in kinds["images"].shape.dim]
    assert sides == ["batch", 48, 64, 3]
    assert kinds["score"].elem_type == kinds["anomaly_map"].elem_type == onnx.TensorProto.FLOAT
    onnx.checker.check_model(onnx.load(part), full_check=True)


def test_nothing_of_this_machine_is_in_the_graph(part: Path, fitted: PatchCore) -> None:
    model = onnx.load(part)
    del model.metadata_props[:]  # the manifest names the folder of the fit, as an artifact does
    data = model.SerializeToString()
    assert b".py" not in data and str(Path(amiss.__file__).parents[1]).encode() not in data


def test_images_of_any_size_are_resized_inside(fitted: PatchCore, tmp_path: Path) -> None:
    done = export(fitted, tmp_path / "any.onnx", input="original")
    exported = amiss.load(done.path)
    for size in ((60, 80), (211, 97), (48, 64), (30, 300)):
        image = texture(np.random.default_rng(5), size)
        raw = exported(image[None], None)
        expected = fitted.predict(image)
        assert not isinstance(expected, list)
        assert raw.score[0] == pytest.approx(expected.score, rel=2e-3)
        assert raw.anomaly_map.shape == (1, 48, 64)
        agree(expected, exported.predict(image))


@pytest.mark.parametrize("given", ["model", "original"])
def test_a_letterbox_looks_away_from_its_bars(
    given: str, tiny: dict[str, Any], normals: Path, tmp_path: Path
) -> None:
    detector = PatchCore(**tiny, resize="letterbox").fit(normals, max_false_alarm=0.2)
    done = export(detector, tmp_path / "box.onnx", input=given)
    exported = amiss.load(done.path)
    assert exported.takes_roi
    image = texture(np.random.default_rng(5), (40, 90))
    expected = detector.predict(image)
    assert not isinstance(expected, list)
    agree(expected, exported.predict(image), score=2e-3)
    if given == "original":
        assert exported.run(image[None], None).score[0] == pytest.approx(expected.score, rel=2e-3)


def test_letterboxed_images_of_several_aspects_prove_themselves_side_by_side(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    # One that fills the frame has no region of interest, the others have: one batch holds both.
    for number, size in enumerate(((48, 64), (40, 90), (70, 50), (48, 64), (60, 80), (33, 64))):
        write(texture(np.random.default_rng(number), size), tmp_path / "mixed" / f"{number}.png")
    detector = PatchCore(**tiny, resize="letterbox").fit(tmp_path / "mixed", max_false_alarm=0.4)
    done = export(detector, tmp_path / "mixed.onnx", input="model")
    assert done.parity.holds and done.parity.real_images >= 4


def test_the_roi_of_the_fit_is_part_of_the_graph(
    tiny: dict[str, Any], normals: Path, tmp_path: Path
) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[:, :40] = 255
    write(mask, tmp_path / "roi.png")
    detector = PatchCore(**tiny).fit(normals, max_false_alarm=0.2, roi=tmp_path / "roi.png")
    exported = amiss.load(export(detector, tmp_path / "left.onnx").path)
    image = texture(np.random.default_rng(5))
    agree(detector.predict(image), exported.predict(image))
    assert not exported.predict(image).anomaly_map[:, 42:].any()


def test_a_roi_that_the_graph_does_not_take_is_a_named_error(part: Path) -> None:
    images = np.zeros((1, 48, 64, 3), np.uint8)
    with pytest.raises(OptionError, match="region of interest"):
        amiss.load(part)(images, np.ones((1, 48, 64), np.bool_))


def test_a_roi_can_be_an_input(fitted: PatchCore, tmp_path: Path) -> None:
    exported = amiss.load(export(fitted, tmp_path / "roi.onnx", roi_input=True).path)
    images = texture(np.random.default_rng(5), (48, 64))[None]
    roi = np.zeros((1, 48, 64), np.bool_)
    roi[:, 10:30, 10:30] = True
    found, everywhere = exported(images, roi), exported(images, None)
    assert found.score[0] <= everywhere.score[0]
    assert not found.anomaly_map[~roi].any()


def test_half_weights_take_half_the_room(fitted: PatchCore, part: Path, tmp_path: Path) -> None:
    done = export(fitted, tmp_path / "half.onnx", precision="fp16")
    weights = [t for t in onnx.load(done.path).graph.initializer if np.prod(t.dims) >= 64]
    stored = sum(t.data_type == onnx.TensorProto.FLOAT16 for t in weights)
    assert stored >= len(weights) - 2
    image = texture(np.random.default_rng(5))
    assert amiss.load(done.path).predict(image).score == pytest.approx(
        fitted.predict(image).score,
        rel=5e-3,  # type: ignore[union-attr]
    )


def test_eight_bits_move_the_threshold_along(
    fitted: PatchCore, labelled: Path, tmp_path: Path
) -> None:
    done = export(fitted, tmp_path / "small.onnx", precision="int8", data=labelled)
    assert {"score_factor", "threshold_after", "image_auroc_after"} <= set(done.drift)
    exported = amiss.load(done.path)
    assert exported.calibration.threshold == pytest.approx(done.drift["threshold_after"])
    assert exported.calibration.threshold != fitted.calibration.threshold  # type: ignore[union-attr]
    assert exported.manifest["export"]["drift"] == done.drift
    kinds = {node.op_type for node in onnx.load(done.path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert not fitted.metrics  # judging for the sake of the export leaves no trace
    assert exported.metrics["image_auroc"] == done.drift["image_auroc_after"]
    assert any("8-bit" in note for note in exported.calibration.notes)


def test_eight_bits_through_openvino(fitted: PatchCore, labelled: Path, tmp_path: Path) -> None:
    done = export(fitted, tmp_path / "small.xml", to="openvino", precision="int8", data=labelled)
    exported = amiss.load(done.path)
    scores = [one.score for one in exported.predict(pictures(tmp_path))]
    assert np.ptp(scores) > 0  # a graph that says the same of every image is not this detector
    assert exported.calibration.threshold == pytest.approx(done.drift["threshold_after"])


def test_openvino_agrees_and_keeps_its_manifest(fitted: PatchCore, tmp_path: Path) -> None:
    done = export(fitted, tmp_path / "part.xml", to="openvino")
    assert {p.name for p in tmp_path.iterdir()} == {"part.xml", "part.bin"}
    exported = amiss.load(done.path)
    image = texture(np.random.default_rng(5))
    agree(fitted.predict(image), exported.predict(image))
    recalibrate(exported, threshold=3.5)
    exported.save(tmp_path / "other.xml")
    again = amiss.load(tmp_path / "other.xml")
    assert again.calibration.threshold == 3.5
    assert again.predict(image).score == exported.predict(image).score


@pytest.mark.skipif(sys.platform != "linux", reason="reads the stack as Linux describes it")
def test_openvino_leaves_the_stack_of_signal_handlers_alone(
    fitted: PatchCore, tmp_path: Path
) -> None:
    path = export(fitted, tmp_path / "part.xml", to="openvino").path
    script = (
        "import ctypes, sys, amiss\n"
        "kept = (ctypes.c_uint64 * 3)()\n"
        "part = amiss.load(sys.argv[1])\n"
        "ctypes.CDLL(None).sigaltstack(None, kept)\n"
        "sys.exit(kept[0] != 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], timeout=60, check=False)
    assert done.returncode == 0


def test_the_threshold_of_an_exported_file_is_changed_in_place(
    part: Path, tmp_path: Path, fitted: PatchCore
) -> None:
    exported = amiss.load(part)
    recalibrate(exported, max_false_alarm=0.3)
    exported.save(tmp_path / "moved.onnx")
    again = amiss.load(tmp_path / "moved.onnx")
    expected = recalibrate(amiss.load(part), max_false_alarm=0.3)
    assert again.calibration.as_dict() == expected.as_dict()
    assert np.array_equal(again.calibration.scores, fitted.calibration.scores)  # type: ignore[union-attr]
    onnx.checker.check_model(onnx.load(tmp_path / "moved.onnx"))
    with pytest.raises(ArtifactError, match="the kind stays"):
        exported.save(tmp_path / "moved.xml")


def test_an_exported_detector_is_judged_like_its_original(
    fitted: PatchCore, part: Path, labelled: Path
) -> None:
    one, other = evaluate(fitted, labelled), evaluate(amiss.load(part), labelled)
    for name, value in one.metrics.items():
        assert other.metrics[name] == pytest.approx(value, abs=1e-6)
    assert other.operating_point["threshold"] == one.operating_point["threshold"]
    assert other.detector["export"]["precision"] == "fp32"


def test_a_graph_that_disagrees_is_not_written(
    fitted: PatchCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(form: Any) -> bytes:
        model = onnx.load_from_string(plain(form))
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.ndim == 4:
                moved = onnx.numpy_helper.from_array(values * np.float32(1.01), tensor.name)
                tensor.CopyFrom(moved)
        data: bytes = model.SerializeToString()
        return data

    plain = exporting.to_onnx
    monkeypatch.setattr(exporting, "to_onnx", shifted)
    with pytest.raises(ExportError, match="does not agree"):
        export(fitted, tmp_path / "bad.onnx")
    assert not list(tmp_path.iterdir())


def test_without_the_photographs_made_images_remain(tiny: dict[str, Any], tmp_path: Path) -> None:
    for path in pictures(tmp_path / "gone", 8):
        assert path.exists()
    detector = PatchCore(**tiny).fit(tmp_path / "gone", max_false_alarm=0.3)
    for path in (tmp_path / "gone").iterdir():
        path.unlink()
    done = export(detector, tmp_path / "part.onnx")
    assert done.parity.real_images == 0 and done.parity.images > 0
    with pytest.raises(ExportError, match="photographs of the fit"):
        export(detector, tmp_path / "small.onnx", precision="int8")
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"to": "tflite"}, "to='tflite'"),
        ({"precision": "int4"}, "precision='int4'"),
        ({"input": "any"}, "input='any'"),
        ({"to": "openvino"}, "not a name for openvino"),
    ],
)
def test_unknown_words_are_named_errors(
    options: dict[str, str], said: str, fitted: PatchCore, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=said):
        export(fitted, tmp_path / "part.onnx", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_manifest_is_plain_json(part: Path) -> None:
    manifest = amiss.load(part).manifest
    manifest.pop("arrays")
    assert json.loads(json.dumps(manifest)) == manifest
    assert "steps" not in manifest["facts"]["backbone"]


def test_a_batch_of_images_of_any_size(fitted: PatchCore, tmp_path: Path) -> None:
    exported = amiss.load(export(fitted, tmp_path / "any.onnx", input="original").path)
    images = np.stack([texture(np.random.default_rng(i), (57, 91)) for i in range(3)])
    together = exported.run(images, None)
    for i, image in enumerate(images):
        assert together.score[i] == pytest.approx(fitted.predict(image).score, rel=1e-4)  # type: ignore[union-attr]


def test_the_roi_of_the_fit_counts_in_metrics_alike(
    tiny: dict[str, Any], labelled: Path, tmp_path: Path
) -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[:, :50] = 255
    write(mask, tmp_path / "roi.png")
    detector = PatchCore(**tiny).fit(labelled, max_false_alarm=0.2, roi=tmp_path / "roi.png")
    exported = amiss.load(export(detector, tmp_path / "left.onnx").path)
    one, other = evaluate(detector, labelled).metrics, evaluate(exported, labelled).metrics
    assert other == pytest.approx(one, abs=1e-4)
    apart = np.zeros((1, 48, 64), np.bool_)
    apart[:, :, 60:] = True
    graph = amiss.load(export(detector, tmp_path / "two.onnx", roi_input=True).path)
    with pytest.raises(DataError, match="leaves nothing"):
        graph(np.zeros((1, 48, 64, 3), np.uint8), apart)


def test_a_bank_searched_approximately_is_refused_with_the_reason(
    tiny: dict[str, Any], normals: Path, tmp_path: Path
) -> None:
    detector = PatchCore(**tiny, search="approximate").fit(normals, max_false_alarm=0.2)
    with pytest.raises(ExportError, match="search='exact'"):
        export(detector, tmp_path / "part.onnx")


def test_a_bank_that_holds_every_patch_is_exported(
    tiny: dict[str, Any], normals: Path, tmp_path: Path
) -> None:
    detector = PatchCore(**tiny | {"coreset_ratio": 1.0}).fit(normals, max_false_alarm=0.2)
    done = export(detector, tmp_path / "part.onnx")  # training images score 0 exactly
    assert done.parity.holds and done.parity.real_images > 0


def test_names_with_a_hash_are_found_again(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(pictures(tmp_path / "photos", 8)):
        path.rename(path.with_name(f"part#{number}.png"))
    detector = PatchCore(**tiny).fit(tmp_path / "photos", max_false_alarm=0.3)
    assert export(detector, tmp_path / "part.onnx").parity.real_images == 8


def test_photographs_of_a_relative_folder_are_found_from_elsewhere(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "photos", 8)
    monkeypatch.chdir(tmp_path)
    detector = PatchCore(**tiny).fit("photos", max_false_alarm=0.3)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert export(detector, tmp_path / "part.onnx").parity.real_images == 8


def test_a_map_that_is_no_number_does_not_pass(fitted: PatchCore, part: Path) -> None:
    exported = amiss.load(part)
    image = texture(np.random.default_rng(5), (48, 64))

    def broken(images: Any, rois: Any) -> Any:
        found = type(exported).run(exported, images, rois)
        return found._replace(anomaly_map=found.anomaly_map * np.nan)

    reference = TorchRuntime(fitted)
    assert measure(reference, exported, [image], real=1, tolerance=1e-4).holds
    exported.run = broken
    assert not measure(reference, exported, [image], real=1, tolerance=1e-4).holds
    exported.run = lambda images, rois: broken(images, rois)._replace(anomaly_map=None)
    assert not measure(reference, exported, [image], real=1, tolerance=1e-4).holds


def test_weights_of_another_openvino_model_are_refused(fitted: PatchCore, tmp_path: Path) -> None:
    path = export(fitted, tmp_path / "part.xml", to="openvino").path
    weights = path.with_suffix(".bin")
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        amiss.load(path)
    weights.unlink()
    with pytest.raises(ArtifactError, match="weights are missing"):
        amiss.load(path)


def changed_manifest(part: Path, path: Path, **changes: Any) -> Path:
    rewrite(part, path, {**read_manifest(part), **changes})
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"facts": []},
        {"training": None},
        {"format": 99},
        {"config": {}},
        {"calibration": {"alpha": "x"}},
        {"arrays": {}},
        {"unknown": 1},
    ],
)
def test_a_manifest_that_does_not_fit_is_a_named_error(
    changes: dict[str, Any], part: Path, tmp_path: Path
) -> None:
    path = changed_manifest(part, tmp_path / "odd.onnx", **changes)
    with pytest.raises(ArtifactError):
        amiss.load(path)


def test_scores_that_are_no_numbers_are_refused(part: Path, tmp_path: Path) -> None:
    arrays = read_manifest(part)["arrays"]
    arrays["calibration.scores"] = arrays["calibration.scores"] * np.nan
    with pytest.raises(ArtifactError, match="not finite"):
        amiss.load(changed_manifest(part, tmp_path / "nan.onnx", arrays=arrays))


@pytest.mark.parametrize("kept", [0, 1, 100, -1000, -1])
def test_a_truncated_file_is_a_named_error(kept: int, part: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(part.read_bytes()[:kept])
    with pytest.raises(ArtifactError):
        amiss.load(path)


def test_a_foreign_graph_is_a_named_error(part: Path, tmp_path: Path) -> None:
    model = onnx.load(part)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ArtifactError, match="without a manifest"):
        amiss.load(tmp_path / "foreign.onnx")


def test_without_openvino_the_extra_is_named_before_any_work(
    fitted: PatchCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(exporting, "to_onnx", None)
    with pytest.raises(MissingDependencyError, match="openvino"):
        export(fitted, tmp_path / "part.xml", to="openvino")


def test_what_is_no_detector_is_told_how_to_become_one(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="fitted detector") as caught:
        export("part.amiss", tmp_path / "part.onnx")  # type: ignore[arg-type]
    assert "amiss.load" in caught.value.hint
