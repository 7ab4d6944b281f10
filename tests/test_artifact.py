"""One file per detector: complete or refused, and no code in it."""

from __future__ import annotations

import ast
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import amiss
from amiss import storage
from amiss.artifact import FORMAT, read_manifest
from amiss.errors import ArtifactError
from amiss.methods.patchcore import PatchCore

SOURCES = Path(amiss.__file__).parent
Manifest = dict[str, Any]


def taken_apart(path: Path) -> tuple[Manifest, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["amiss"]), {
            name: file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
        }


def put_together(path: Path, manifest: object, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path, metadata={"amiss": json.dumps(manifest)})
    return path


def refused(path: Path) -> ArtifactError:
    """Loading must raise ArtifactError, with the file's name in it."""
    with pytest.raises(ArtifactError) as caught:
        amiss.load(path)
    assert path.name in caught.value.message
    return caught.value


# --- what comes back -------------------------------------------------------------------------


def test_a_detector_comes_back_as_it_was(artifact: Path, labelled: Path, tmp_path: Path) -> None:
    one = amiss.load(artifact)
    two = amiss.load(one.save(tmp_path / "again.amiss"))
    path = labelled / "test" / "scratch" / "000.png"
    found, again = one.predict(path), two.predict(path)
    assert found.score == again.score and found.p_value == again.p_value
    assert found.regions == again.regions
    assert np.array_equal(found.anomaly_map, again.anomaly_map)
    assert one.config == two.config and one.training_facts == two.training_facts
    assert np.array_equal(one.training_digests, two.training_digests)
    assert len(one.training_digests) == 12


def test_the_tensors_of_two_fits_are_the_same_bytes(
    labelled: Path, artifact: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    again = PatchCore(**tiny).fit(labelled, max_false_alarm=0.1).save(tmp_path / "again.amiss")
    _, one = taken_apart(artifact)
    _, other = taken_apart(again)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_manifest_says_what_the_file_holds(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert manifest["format"] == FORMAT and manifest["method"] == "patchcore"
    assert manifest["config"]["image_size"] == [48, 64]
    assert manifest["training"]["n_normal"] == 12
    assert len(manifest["training"]["fingerprint"]) == 64
    assert manifest["calibration"]["max_false_alarm"] == 0.1
    assert {"python", "amiss", "torch"} <= manifest["versions"].keys()
    backbone = manifest["facts"]["backbone"]
    assert backbone["name"] == "test_efficientnet" and len(backbone["weights_sha256"]) == 64


def test_the_region_of_interest_is_stored(
    labelled: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    from made_images import write

    roi = np.zeros((60, 80), np.uint8)
    roi[10:50, 5:45] = 255
    mask = write(roi, tmp_path / "roi.png")
    fitted = PatchCore(**tiny).fit(labelled, roi=mask)
    loaded = amiss.load(fitted.save(tmp_path / "roi.amiss"))
    assert loaded.roi is not None and torch.equal(loaded.roi, fitted.roi)
    pixels = np.full((60, 80, 3), 120, np.uint8)
    found = loaded.predict(pixels)
    assert not found.anomaly_map[:, 50:].any()
    assert found.score == fitted.predict(pixels).score


def test_one_image_gives_a_detector_without_calibration(
    normals: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    fitted = PatchCore(**tiny).fit([normals / "000.png"])
    loaded = amiss.load(fitted.save(tmp_path / "one.amiss"))
    found = loaded.predict(normals / "001.png")
    assert loaded.calibration is None
    assert found.p_value is None and found.is_anomalous is None and not found.regions
    assert np.isfinite(found.score) and found.anomaly_map.shape == (60, 80)


def test_loading_needs_no_model_zoo(artifact: Path) -> None:
    code = (
        "import sys, numpy, amiss\n"
        f"detector = amiss.load({str(artifact)!r})\n"
        "detector.predict(numpy.zeros((30, 40, 3), numpy.uint8))\n"
        "assert 'timm' not in sys.modules and 'torchvision' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- damaged files ---------------------------------------------------------------------------


def test_a_file_cut_short_anywhere_is_refused(artifact: Path, tmp_path: Path) -> None:
    data = artifact.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    cuts = [0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1]
    cuts += [len(data) * share // 10 for share in range(1, 10)] + [len(data) - 1]
    for cut in cuts:
        path = tmp_path / f"cut{cut}.amiss"
        path.write_bytes(data[:cut])
        refused(path)


def test_more_bytes_than_the_header_says_are_refused(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.amiss"
    path.write_bytes(artifact.read_bytes() + b"\0" * 64)
    refused(path)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 1 << 40, 100_000_001])
def test_a_header_of_any_claimed_size_is_refused_unread(
    length: int, artifact: Path, tmp_path: Path
) -> None:
    path = tmp_path / "claims.amiss"
    path.write_bytes(struct.pack("<Q", length) + artifact.read_bytes()[8:])
    assert str(length) in refused(path).message


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 200_000,  # nested too deeply to parse
        b"[1, 2]",
        b'"text"',
        b'{"__metadata__": 3}',
        b'{"__metadata__": {"amiss": 3}}',
        b"\xff\xfe\xfd",
        b"{",
    ],
)
def test_a_header_of_nonsense_is_refused(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "nonsense.amiss"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refused(path)


def test_files_of_other_programs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.amiss"
    save_file({"a": torch.zeros(2)}, path)
    assert "not written by amiss" in refused(path).message
    path.write_bytes(b"PK\x03\x04" + bytes(200))
    refused(path)
    torch.save({"a": torch.zeros(2)}, path)
    refused(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no file"):
        amiss.load(tmp_path / "nowhere.amiss")
    with pytest.raises(ArtifactError):
        read_manifest(tmp_path / "nowhere.amiss")
    with pytest.raises(ArtifactError):
        amiss.load(tmp_path)


# --- manifests that do not fit ---------------------------------------------------------------


def _set(*keys: str, to: object) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        inner = manifest
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to

    return change


CHANGES: dict[str, Callable[[Manifest], None]] = {
    "a later format": _set("format", to=FORMAT + 1),
    "a format that is text": _set("format", to="1.0"),
    "an unknown method": _set("method", to="telepathy"),
    "a method that is a list": _set("method", to=["patchcore"]),
    "an unknown option": _set("config", "magic", to=3),
    "an option out of range": _set("config", "coreset_ratio", to=7),
    "an option of another type": _set("config", "neighborhood", to="3"),
    "no options": _set("config", to=None),
    "options in a list": _set("config", to=["image_size"]),
    "no facts": _set("facts", to=None),
    "no backbone": _set("facts", to={"bank": {}}),
    "no bank": lambda m: m["facts"].pop("bank"),
    "an unknown step": lambda m: m["facts"]["backbone"]["steps"][0].update(op="eval"),
    "an unknown activation": lambda m: m["facts"]["backbone"]["steps"][0].update(
        activation="__import__"
    ),
    "a step that reads the future": lambda m: m["facts"]["backbone"]["steps"][0].update(
        inputs=[99]
    ),
    "steps that are text": _set("facts", "backbone", "steps", to="abc"),
    "outputs that do not exist": _set("facts", "backbone", "outputs", to=[999]),
    "statistics of too few channels": _set("facts", "backbone", "mean", to=[0.5, 0.5]),
    "statistics that divide by zero": _set("facts", "backbone", "std", to=[0, 0, 0]),
    "an unknown calibration key": _set("calibration", "magic", to=1),
    "a calibration of text": _set("calibration", "threshold", to="high"),
    "a threshold of nan": _set("calibration", "threshold", to=float("nan")),
    "a training of text": _set("training", to="yes"),
    "metrics of text": _set("metrics", to="good"),
    "an unknown section": _set("plugins", to={}),
    "a missing section": lambda m: m.pop("training"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_does_not_fit_is_refused(name: str, artifact: Path, tmp_path: Path) -> None:
    manifest, tensors = taken_apart(artifact)
    CHANGES[name](manifest)
    refused(put_together(tmp_path / "changed.amiss", manifest, tensors))


@pytest.mark.parametrize("manifest", [None, 3, "text", [], {}])
def test_a_manifest_of_another_kind_is_refused(
    manifest: object, artifact: Path, tmp_path: Path
) -> None:
    _, tensors = taken_apart(artifact)
    refused(put_together(tmp_path / "changed.amiss", manifest, tensors))


def test_a_later_format_says_what_to_do(artifact: Path, tmp_path: Path) -> None:
    manifest, tensors = taken_apart(artifact)
    manifest["format"] = FORMAT + 1
    error = refused(put_together(tmp_path / "later.amiss", manifest, tensors))
    assert f"format {FORMAT + 1}" in error.message and "later amiss" in error.hint


# --- tensors that do not fit -----------------------------------------------------------------


def test_a_missing_tensor_is_refused_whichever_it_is(artifact: Path, tmp_path: Path) -> None:
    manifest, tensors = taken_apart(artifact)
    accepted = []
    for name in tensors:
        rest = {k: v for k, v in tensors.items() if k != name}
        path = put_together(tmp_path / "missing.amiss", manifest, rest)
        try:
            amiss.load(path)
        except ArtifactError:
            continue
        accepted.append(name)
    assert not accepted


@pytest.mark.parametrize(
    "name", ["stranger", "bank.stranger", "backbone.weight_999", "backbone.bias_0", "roi",
             "calibration.stranger"],
)  # fmt: skip
def test_a_tensor_of_no_use_is_refused(name: str, artifact: Path, tmp_path: Path) -> None:
    manifest, tensors = taken_apart(artifact)
    tensors[name] = torch.ones(48, 64) > 0
    refused(put_together(tmp_path / "extra.amiss", manifest, tensors))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["bank.rows", "backbone.weight_1", "calibration.scores"])
def test_values_that_are_not_finite_are_refused(
    name: str, value: float, artifact: Path, tmp_path: Path
) -> None:
    manifest, tensors = taken_apart(artifact)
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = value
    error = refused(put_together(tmp_path / "wild.amiss", manifest, tensors))
    assert name in error.message


RESHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "bank.rows": lambda t: t[:, :-1],
    "bank.neighborhoods": lambda t: t + len(t),  # rows that do not exist
    "bank.origin": lambda t: t[:-1],
    "backbone.weight_1": lambda t: t[:, :-1],
    "backbone.bias_1": lambda t: t[:-1],
    "calibration.scores": lambda t: t[:0],
    "calibration.map_maxima": lambda t: t.repeat(2),
    "training.digests": lambda t: t[:, :-1],
}


@pytest.mark.parametrize("name", RESHAPED)
def test_a_tensor_of_another_shape_is_refused(name: str, artifact: Path, tmp_path: Path) -> None:
    manifest, tensors = taken_apart(artifact)
    tensors[name] = RESHAPED[name](tensors[name]).contiguous()
    refused(put_together(tmp_path / "shape.amiss", manifest, tensors))


def test_rows_of_another_type_are_refused(artifact: Path, tmp_path: Path) -> None:
    manifest, tensors = taken_apart(artifact)
    tensors["bank.rows"] = tensors["bank.rows"].to(torch.int32)
    refused(put_together(tmp_path / "type.amiss", manifest, tensors))


# --- writing ---------------------------------------------------------------------------------


def test_saving_into_no_folder_is_a_named_error(detector: PatchCore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be written"):
        detector.save(tmp_path / "no" / "part.amiss")
    assert not list(tmp_path.iterdir())


def test_saving_over_a_folder_leaves_nothing_behind(detector: PatchCore, tmp_path: Path) -> None:
    (tmp_path / "part.amiss").mkdir()
    with pytest.raises(ArtifactError, match="cannot be written"):
        detector.save(tmp_path / "part.amiss")
    assert [path.name for path in tmp_path.iterdir()] == ["part.amiss"]


def test_a_failure_while_writing_keeps_the_old_file(
    detector: PatchCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "part.amiss"
    path.write_bytes(b"the old file")

    def half(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", half)
    with pytest.raises(ArtifactError, match="No space left"):
        detector.save(path)
    assert path.read_bytes() == b"the old file"
    assert [p.name for p in tmp_path.iterdir()] == ["part.amiss"]


def test_an_interruption_while_writing_leaves_nothing(
    detector: PatchCore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(b"half a fi")
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        detector.save(tmp_path / "part.amiss")
    assert not list(tmp_path.iterdir())


# --- no code in files ------------------------------------------------------------------------


def test_nothing_in_the_sources_unpickles() -> None:
    guilty = []
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Call):
                guilty += _unsafe_call(path, node)
            guilty += [
                f"{path.name}: {m}"
                for m in modules
                if m.split(".")[0] in {"pickle", "dill", "joblib", "shelve", "marshal"}
            ]
    assert not guilty


def _unsafe_call(path: Path, node: ast.Call) -> list[str]:
    """torch.load without weights_only=True, numpy.load with pickles, eval and exec."""
    text = ast.unparse(node)
    options = {k.arg: ast.unparse(k.value) for k in node.keywords}
    is_unsafe = (
        (text.startswith("torch.load(") and options.get("weights_only") != "True")
        or options.get("allow_pickle", "False") != "False"
        or text.startswith(("eval(", "exec("))
    )
    return [f"{path.name}: {text}"] if is_unsafe else []
