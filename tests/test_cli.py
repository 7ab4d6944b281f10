"""Every command: what it prints, where, and how it ends."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import amiss as package
from amiss.artifact import read_manifest
from amiss.console import as_typed, parse_memory, parse_size
from amiss.data.images import write_png
from amiss.errors import OptionError
from amiss.methods import METHODS, method_class
from amiss.methods.dcgan import DCGAN
from amiss.run import Run
from amiss.runtime import load
from amiss.watch import Stopper
from commands import TINY_FLAGS, Outcome, amiss
from made_images import textures

Capture = pytest.CaptureFixture[str]


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`amiss` as a program of its own."""
    code = "import sys; from amiss.cli import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, input=stdin,
    )  # fmt: skip


# --- help and start-up -----------------------------------------------------------------------


def test_help_and_import_do_not_load_torch() -> None:
    code = (
        "import sys\n"
        "import amiss\n"
        "assert 'torch' not in sys.modules\n"
        "from amiss.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as ended:\n    assert not ended.code\n"
        "heavy = {'torch', 'timm', 'faiss', 'onnxruntime', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for command in ("fit", "evaluate", "predict", "calibrate", "check", "methods", "inspect"):
        assert command in done.stdout


def test_the_help_of_a_method_lists_every_option(capsys: Capture) -> None:
    for method in METHODS:
        told = amiss(capsys, "fit", method, "--help")
        assert told.status == 0
        for name in vars(method_class(method).config_type()):
            assert f"--{name.replace('_', '-')}" in told.out
        for field in dataclasses.fields(method_class(method).config_type):
            choices = field.metadata["choices"]
            assert not choices or "|".join(choices) in "".join(told.out.split())


def test_the_help_of_fit_names_the_methods(capsys: Capture) -> None:
    told = amiss(capsys, "fit", "--help")
    assert told.status == 0 and all(method in told.out for method in METHODS)


@pytest.mark.parametrize("arguments", [[], ["fit"]])
def test_without_arguments_help_is_shown_as_wrong_usage(
    arguments: list[str], capsys: Capture
) -> None:
    told = amiss(capsys, *arguments)
    assert told.status == 2 and "Usage" in told.out + told.err


# --- fit -------------------------------------------------------------------------------------


def test_fit_writes_the_file_and_says_what_it_did(
    labelled: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "part.amiss"
    told = amiss(capsys, "fit", "patchcore", labelled, "-o", output, *TINY_FLAGS)
    assert told.status == 0 and output.is_file()
    assert "threshold" in told.out and "12 normal images" in told.out
    assert "MVTec" in told.err and "memory: about" in told.err  # before any work
    assert "coreset: " in told.err and "cannot support" in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["part.amiss"]


def test_fit_prints_one_object_with_json(labelled: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "part.amiss"
    told = amiss(
        capsys, "fit", "patchcore", labelled, "-o", output, *TINY_FLAGS, "--json",
        "--max-false-alarm", 0.2, "--seed", 3, "--coreset-size", 50,
    )  # fmt: skip
    assert told.status == 0 and not told.err
    assert told.json["output"] == str(output) and told.json["n_normal"] == 12
    assert told.json["method"] == "patchcore"
    assert told.json["calibration"]["max_false_alarm"] == 0.2
    assert told.json["seconds"] > 0 and told.json["peak_memory_mib"] > 0
    said = "\n".join(told.json["notes"])
    for words in ("MVTec", "memory: about"):
        assert words in said
    manifest = read_manifest(output)
    assert manifest["config"]["coreset_size"] == 50 and manifest["training"]["seed"] == 3


def test_what_an_approximate_search_reached_is_among_the_notes(
    normals: Path, tmp_path: Path, capsys: Capture
) -> None:
    told = amiss(
        capsys, "fit", "patchcore", normals, "-o", tmp_path / "part.amiss", *TINY_FLAGS, "--json",
        "--search", "approximate",
    )  # fmt: skip
    assert told.status == 0 and "recall@1" in "\n".join(told.json["notes"])


def test_every_option_can_be_set_by_its_flag(
    normals: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "part.amiss"
    flags: dict[str, Any] = {
        "--resize": "letterbox", "--normalization": "imagenet", "--embedding": "adaptive",
        "--neighborhood": 5, "--stride": 2, "--layer-dim": 30, "--target-dim": 20,
        "--coreset-size": 40, "--coreset": "random", "--projection-dim": 0, "--num-neighbors": 3,
        "--distance": "squared", "--blur-sigma": 2, "--folds": 2, "--search": "exact",
    }  # fmt: skip
    told = amiss(
        capsys, "fit", "patchcore", normals, "-o", output, *TINY_FLAGS,
        *(part for pair in flags.items() for part in pair),
    )  # fmt: skip
    assert told.status == 0
    config = read_manifest(output)["config"]
    for flag, value in flags.items():
        assert config[flag[2:].replace("-", "_")] == value
    assert config["image_size"] == [48, 64] and config["layers"] == ["4", "8"]


def test_an_interrupted_fit_ends_with_130_and_goes_on(
    normals: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amiss import console

    output = tmp_path / "part.amiss"
    arguments = ["fit", "patchcore", normals, "-o", output, *TINY_FLAGS]

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "calibration":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(console, "_line_per_stage", interrupt)
        assert amiss(capsys, *arguments).status == 130
    assert not output.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["part.amiss.partial"]
    told = amiss(capsys, *arguments)
    assert told.status == 0 and "going on" in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["part.amiss"]


# --- evaluate --------------------------------------------------------------------------------


def test_evaluate_prints_the_figures(artifact: Path, labelled: Path, capsys: Capture) -> None:
    told = amiss(capsys, "evaluate", artifact, labelled)
    assert told.status == 0
    for name in ("image_auroc", "aupro", "false alarms", "scratch", "hole"):
        assert name in told.out


def test_evaluate_prints_one_object_with_json(
    artifact: Path, labelled: Path, tmp_path: Path, capsys: Capture
) -> None:
    page = tmp_path / "page.html"
    told = amiss(capsys, "evaluate", artifact, labelled, "--json", "--report", page)
    assert told.status == 0 and not told.err
    assert {"image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro"} <= (
        told.json["metrics"].keys()
    )
    assert told.json["intervals"].keys() <= told.json["metrics"].keys()
    for key in ("threshold", "false_alarm_rate", "seconds", "peak_memory_mib", "notes"):
        assert key in told.json
    assert told.json["report"] == str(page) and page.read_text().startswith("<!")


# --- predict ---------------------------------------------------------------------------------


def test_predict_prints_a_line_per_image(artifact: Path, labelled: Path, capsys: Capture) -> None:
    told = amiss(capsys, "predict", artifact, labelled / "test" / "scratch")
    lines = told.out.splitlines()
    assert told.status == 0 and len(lines) == 4
    assert all(line.startswith("ANOMALOUS") and ".png" in line for line in lines)
    assert "4 images, 4 anomalous" in told.err


def test_predict_prints_one_object_with_json(
    artifact: Path, labelled: Path, capsys: Capture
) -> None:
    folder = labelled / "test" / "scratch"
    told = amiss(capsys, "predict", artifact, folder, folder / "000.png", "--json")
    assert told.status == 0 and not told.err
    assert len(told.json["results"]) == 5 and told.json["n_anomalous"] == 5
    assert told.json["skipped"] == [] and told.json["threshold"] > 0
    row = told.json["results"][0]
    assert {"path", "score", "p_value", "is_anomalous", "regions"} <= row.keys()
    assert row["error"] is None and row["threshold"] == told.json["threshold"]
    assert {"p50", "p95", "p99"} == told.json["latency_ms"].keys()


def test_predict_ends_with_3_on_an_anomaly_only_when_asked(
    artifact: Path, labelled: Path, capsys: Capture
) -> None:
    bad = labelled / "test" / "scratch"
    assert amiss(capsys, "predict", artifact, bad).status == 0
    assert amiss(capsys, "predict", artifact, bad, "--fail-on-anomaly").status == 3
    told = amiss(capsys, "predict", artifact, bad, "--fail-on-anomaly", "--json")
    assert told.status == 3 and told.json["n_anomalous"] == 4
    normal = labelled / "train" / "good" / "000.png"
    assert amiss(capsys, "predict", artifact, normal, "--fail-on-anomaly").status == 0


def test_predict_judges_no_masks_of_a_folder(
    artifact: Path, labelled: Path, capsys: Capture
) -> None:
    told = amiss(capsys, "predict", artifact, labelled, "--json")
    paths = [Path(row["path"]) for row in told.json["results"]]
    masks = list((labelled / "ground_truth").rglob("*.png"))
    assert masks and not set(paths) & set(masks)
    assert f"{len(masks)} masks in {labelled} are not judged" in told.err
    alone = amiss(capsys, "predict", artifact, labelled / "ground_truth", "--json")
    assert len(alone.json["results"]) == len(masks)  # whoever names them means them


def test_predict_takes_a_list_on_stdin(
    artifact: Path, labelled: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted((labelled / "test" / "hole").iterdir())
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(map(str, paths)) + "\n\n"))
    told = amiss(capsys, "predict", artifact, "-", "--json")
    assert [row["path"] for row in told.json["results"]] == [str(path) for path in paths]


def test_predict_writes_tables_and_heat_maps(
    artifact: Path, labelled: Path, tmp_path: Path, capsys: Capture
) -> None:
    told = amiss(
        capsys, "predict", artifact, labelled / "test" / "hole", labelled / "test" / "scratch",
        "--csv", tmp_path / "t.csv", "--jsonl", tmp_path / "t.jsonl",
        "--heatmaps", tmp_path / "heat", "--json",
    )  # fmt: skip
    assert told.status == 0
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert lines == told.json["results"] and len(rows) == 6
    for row, line in zip(rows, lines, strict=True):
        assert row["path"] == line["path"] and float(row["score"]) == line["score"]
        assert int(row["regions"]) == len(line["regions"])
    pictures = sorted((tmp_path / "heat").iterdir())
    assert len(pictures) == 6  # two folders hold a 000.png each
    assert sorted(row["heat_map"] for row in rows) == [picture.name for picture in pictures]
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.format == "PNG" and image.size[1] >= 60


def test_predict_watches_a_folder_until_it_is_told_to_stop(
    artifact: Path, labelled: Path, tmp_path: Path
) -> None:
    inbox, lines = tmp_path / "inbox", tmp_path / "out.jsonl"
    inbox.mkdir()
    code = "import sys; from amiss.cli import main; main(sys.argv[1:])"
    arguments = ["predict", str(artifact), "--watch", str(inbox), "--jsonl", str(lines)]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        assert "Watching" in process.stderr.readline()
        shutil.copy(labelled / "test" / "scratch" / "000.png", inbox / "new.png")
        first = process.stdout.readline()
        kept = lines.read_text()  # while it still runs
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        said = process.stderr.read()
    assert first.startswith("ANOMALOUS") and "new.png" in first
    assert json.loads(kept)["is_anomalous"] is True
    assert "1 images, 1 anomalous (p50" in said and "Traceback" not in said


def watch_while(
    work: Callable[[Path], None], capsys: Capture, artifact: Path, inbox: Path, *flags: object
) -> Outcome:
    """`amiss predict --watch` in this process while `work` puts files into the folder; then, unless
    it has ended by itself, it is told to stop."""
    inbox.mkdir(exist_ok=True)
    failures: list[BaseException] = []

    def put() -> None:
        try:
            work(inbox)
        except BaseException as error:
            failures.append(error)
        finally:
            if signal.getsignal(signal.SIGINT) != before:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=put)
    original = Stopper.__enter__

    def begin(stopper: Stopper) -> Stopper:
        original(stopper)
        thread.start()
        return stopper

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stopper, "__enter__", begin)
        told = amiss(capsys, "predict", artifact, "--watch", inbox, *flags)
    thread.join(10)
    assert not failures and signal.getsignal(signal.SIGINT) == before
    return told


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)


def lines_in(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_watch_goes_on_after_broken_files_and_judges_rewritten_ones(
    artifact: Path, labelled: Path, tmp_path: Path, capsys: Capture
) -> None:
    good, bad = labelled / "test" / "good" / "000.png", labelled / "test" / "scratch" / "000.png"
    lines, table, heat = tmp_path / "o.jsonl", tmp_path / "o.csv", tmp_path / "heat"

    def work(inbox: Path) -> None:
        (inbox / "cut.png").write_bytes(good.read_bytes()[:200])
        (inbox / "text.png").write_text("no image")
        shutil.copyfile(good, inbox / "part.png")
        wait_for(lambda: lines_in(lines) == 3)  # two of them say why there is no score
        shutil.copyfile(bad, inbox / "part.png")
        wait_for(lambda: lines_in(lines) == 4)

    told = watch_while(
        work, capsys, artifact, tmp_path / "inbox", "--jsonl", lines, "--csv", table,
        "--heatmaps", heat,
    )  # fmt: skip
    assert told.status == 0
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    broken = [row for row in rows if row["error"]]
    assert {Path(row["path"]).name for row in broken} == {"cut.png", "text.png"}
    first, second = (row for row in rows if not row["error"])
    assert first["path"] == second["path"] and first["score"] < second["score"]
    assert second["is_anomalous"] is True and lines_in(table) == 5
    assert {path.name for path in heat.iterdir()} == {"part.heat.png", "part.2.heat.png"}
    assert told.err.count("skipped: ") == 2 and "2 images" in told.err.splitlines()[-1]
    assert "2 skipped" in told.err.splitlines()[-1]


def test_a_watch_with_json_prints_the_summary_alone(
    artifact: Path, labelled: Path, tmp_path: Path, capsys: Capture
) -> None:
    lines = tmp_path / "o.jsonl"
    lines.write_text("")

    def work(inbox: Path) -> None:
        shutil.copyfile(labelled / "test" / "scratch" / "000.png", inbox / "a.png")
        wait_for(lambda: lines_in(lines) == 1)

    flags = ["--jsonl", lines, "--json", "--fail-on-anomaly"]
    told = watch_while(work, capsys, artifact, tmp_path / "inbox", *flags)
    assert told.status == 3 and not told.err
    assert "results" not in told.json and told.json["n_images"] == told.json["n_anomalous"] == 1
    assert told.json["latency_ms"].keys() == {"p50", "p95", "p99"}


def test_a_watch_whose_folder_vanishes_ends_with_a_named_error(
    artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    before = signal.getsignal(signal.SIGINT)

    def work(inbox: Path) -> None:
        inbox.rmdir()
        wait_for(lambda: signal.getsignal(signal.SIGINT) == before)

    told = watch_while(work, capsys, artifact, tmp_path / "inbox")
    assert told.status == 1 and "cannot be watched" in told.err


def test_a_table_of_another_kind_is_not_added_to(
    artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("mine\n1\n")
    told = amiss(capsys, "predict", artifact, "--watch", tmp_path, "--csv", table)
    assert told.status == 1 and "another table" in told.err
    assert table.read_text() == "mine\n1\n"


# --- calibrate -------------------------------------------------------------------------------


def test_calibrate_changes_the_file_it_is_given(
    artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    part = tmp_path / "part.amiss"
    part.write_bytes(artifact.read_bytes())
    told = amiss(capsys, "calibrate", part, "--max-false-alarm", 0.5, "--json")
    assert told.status == 0 and told.json["max_false_alarm"] == 0.5
    low, high = told.json["expected_rates"]
    assert 0 < low < 0.5 < high < 1
    assert read_manifest(part)["calibration"]["threshold"] == told.json["threshold"]


def test_calibrate_keeps_the_file_when_it_writes_another(
    artifact: Path, labelled: Path, tmp_path: Path, capsys: Capture
) -> None:
    before, other = artifact.read_bytes(), tmp_path / "other.amiss"
    told = amiss(
        capsys, "calibrate", artifact, "--policy", "cost 1:10", "--labelled", labelled / "test",
        "-o", other,
    )  # fmt: skip
    assert told.status == 0 and "by cost 1:10" in told.out
    assert artifact.read_bytes() == before
    assert read_manifest(other)["calibration"]["policy"] == "cost 1:10"


def test_calibrate_takes_a_layout_and_a_region_of_interest(
    artifact: Path, labelled: Path, tmp_path: Path, capsys: Capture
) -> None:
    thresholds = []
    roi = tmp_path / "roi.png"
    half = np.zeros((60, 80), np.uint8)
    half[:, 40:] = 255
    Image.fromarray(half).save(roi)
    for flags in ([], ["--roi", roi]):
        told = amiss(
            capsys, "calibrate", artifact, "--policy", "f1", "--labelled", labelled / "test",
            "--layout", "two_folder", "-o", tmp_path / "other.amiss", "--json", *flags,
        )  # fmt: skip
        assert told.status == 0
        thresholds.append(told.json["threshold"])
    assert thresholds[0] != thresholds[1]
    told = amiss(
        capsys, "calibrate", artifact, "--policy", "f1", "--labelled", labelled / "test",
        "--layout", "headct", "-o", tmp_path / "other.amiss",
    )  # fmt: skip
    assert told.status == 1 and "headct" in told.err


# --- what is found in a set ------------------------------------------------------------------


@pytest.fixture
def unsplit(tmp_path: Path) -> Path:
    """Ten normals and two defects without a split, their masks outside the set."""
    root = tmp_path / "set"
    textures(root / "good", 10, seed=1)
    textures(root / "spot", 2, seed=3, defects=True, masks=tmp_path / "masks")
    return root


def test_the_share_for_tests_and_the_masks_folder_reach_every_command(
    unsplit: Path, tmp_path: Path, capsys: Capture
) -> None:
    part = tmp_path / "part.amiss"
    flags = ["--test-fraction", 0.5, "--mask-dir", tmp_path / "masks", "--json"]
    told = amiss(capsys, "fit", "patchcore", unsplit, "-o", part, *TINY_FLAGS, *flags)
    assert told.status == 0 and told.json["n_normal"] == 5
    told = amiss(capsys, "evaluate", part, unsplit, *flags)
    assert told.status == 0 and "aupro" in told.json["metrics"]
    told = amiss(capsys, "check", unsplit, *flags)
    assert told.json["counts"]["train"]["normal"] == 5
    assert told.json["counts"]["test"]["normal"] == 5


@pytest.mark.parametrize("command", ["fit", "evaluate", "check"])
def test_flags_of_a_set_are_refused_where_they_have_no_use(
    command: str, unsplit: Path, artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments: dict[str, list[object]] = {
        "fit": ["fit", "patchcore", unsplit, "-o", tmp_path / "part.amiss", *TINY_FLAGS],
        "evaluate": ["evaluate", artifact, unsplit],
        "check": ["check", unsplit],
    }
    told = amiss(capsys, *arguments[command], "--elpv-anomalous", 0.66)
    assert told.status == 1 and "--elpv-anomalous" in told.err
    told = amiss(capsys, *arguments[command], "--test-fraction", 1.5)
    assert told.status == 1 and "--test-fraction" in told.err


# --- check, methods, inspect -----------------------------------------------------------------


def test_check_says_whether_a_fit_is_advisable(
    labelled: Path, artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    told = amiss(capsys, "check", labelled, "--max-false-alarm", 0.2, "--json")
    assert told.json["ok"] is (told.status == 0)
    assert told.json["counts"]["train"]["normal"] == 12
    told = amiss(capsys, "check", labelled, "--detector", artifact)
    assert "12 normal" in told.out
    (tmp_path / "a.png").touch()
    told = amiss(capsys, "check", tmp_path, "--json")
    assert told.status == 1 and told.json["ok"] is False


def test_methods_lists_what_each_can_do(capsys: Capture) -> None:
    told = amiss(capsys, "methods", "--json")
    rows = told.json["methods"]
    assert [row["id"] for row in rows] == list(METHODS)
    for row in rows:
        assert row.keys() == {"id", "paper", "localizes", "exportable", "learns_from_anomalies"}
    told = amiss(capsys, "methods")
    assert told.status == 0 and "patchcore" in told.out and "CVPR" in told.out


def test_inspect_says_what_a_file_holds(artifact: Path, capsys: Capture) -> None:
    told = amiss(capsys, "inspect", artifact, "--json")
    assert told.status == 0 and told.json["method"] == "patchcore"
    assert told.json["training"]["n_normal"] == 12
    told = amiss(capsys, "inspect", artifact)
    assert told.status == 0
    for word in ("coreset_ratio", "threshold", "12 names", "fingerprint"):
        assert word in told.out


# --- as a program ----------------------------------------------------------------------------


def test_the_program_fits_and_judges_without_a_warning(labelled: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.amiss"
    done = run("fit", "patchcore", labelled, "-o", part, *TINY_FLAGS, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    image = labelled / "test" / "scratch" / "001.png"
    done = run("predict", part, "-", "--fail-on-anomaly", "--json", stdin=f"{image}\n")
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["results"][0]["path"] == str(image)
    assert done.stderr == ""


def test_the_program_says_errors_on_stderr_and_as_json_on_stdout(tmp_path: Path) -> None:
    done = run("predict", tmp_path / "no.amiss", tmp_path / "x.png")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("ArtifactError: ") and "Traceback" not in done.stderr
    done = run("predict", tmp_path / "no.amiss", tmp_path / "x.png", "--json")
    assert done.returncode == 1 and done.stderr == ""
    assert json.loads(done.stdout)["error"] == "ArtifactError"


def test_the_command_is_installed() -> None:
    from importlib.metadata import entry_points

    (command,) = entry_points(group="console_scripts", name="amiss")
    assert command.value == "amiss.cli:main"
    assert package.__name__ == "amiss"


# --- sizes and amounts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mib"),
    [("2GiB", 2048), ("2 gb", 2048), ("800M", 800), ("1.5G", 1536), ("1T", 1 << 20),
     ("2048K", 2), ("4194304", 4), (" 512MiB ", 512)],
)  # fmt: skip
def test_amounts_of_memory(text: str, mib: int) -> None:
    assert parse_memory(text) == mib
    assert parse_memory(None) is None


@pytest.mark.parametrize("text", ["", "much", "-1GiB", "2GiBs", "0", "1K", "1e3M"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(OptionError):
        parse_memory(text)


def test_sizes_are_height_by_width() -> None:
    assert parse_size("256") == (256, 256)
    assert parse_size(" 48x64 ") == parse_size("48X64") == (48, 64)
    for text in ("", "x", "48x", "48x64x3", "-48", "4.8"):
        with pytest.raises(OptionError):
            parse_size(text)


def test_the_version_is_said(capsys: Capture) -> None:
    told = amiss(capsys, "--version")
    assert told.status == 0 and told.out.startswith("amiss ")


def test_an_image_in_the_place_of_the_detector_is_named(
    labelled: Path, artifact: Path, capsys: Capture
) -> None:
    image = labelled / "test" / "good" / "000.png"
    told = amiss(capsys, "predict", image, artifact)
    assert told.status == 1 and "is an image" in told.err


def test_without_a_threshold_nothing_can_fail_on_an_anomaly(
    artifact: Path, labelled: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = load(artifact)
    model.calibration = None
    path = model.save(tmp_path / "raw.amiss")
    told = amiss(capsys, "predict", path, labelled / "test" / "good", "--fail-on-anomaly")
    assert told.status == 1 and "no threshold" in told.err


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("max_memory='2x' is not an amount.", "--max-memory '2x' is not an amount."),
        ("Give one of max_false_alarm, threshold and policy.",
         "Give one of --max-false-alarm, threshold and policy."),
        ("Lower coreset_ratio or image_size, or raise max_memory.",
         "Lower --coreset-ratio or --image-size, or raise --max-memory."),
        ("max_false_alarm=1.5 is not a rate.", "--max-false-alarm 1.5 is not a rate."),
        ("/data/image_size.png: no such file.", "/data/image_size.png: no such file."),
        ("test_set holds no image_size(1).", "test_set holds no image_size(1)."),
    ],
)  # fmt: skip
def test_a_person_is_told_flags_as_they_are_typed(said: str, typed: str) -> None:
    flags = {"max_memory", "max_false_alarm", "coreset_ratio", "image_size"}
    assert as_typed(said, flags) == typed


def test_errors_name_flags_to_a_person_and_options_to_a_program(
    artifact: Path, capsys: Capture
) -> None:
    arguments = ["calibrate", artifact, "--max-false-alarm", "0.1", "--threshold", "2"]
    assert "--max-false-alarm" in amiss(capsys, *arguments).err
    assert "max_false_alarm" in amiss(capsys, *arguments, "--json").json["message"]


def test_inspect_prints_a_line_for_each_fact(artifact: Path, capsys: Capture) -> None:
    told = amiss(capsys, "inspect", artifact)
    assert told.status == 0 and "{" not in told.out and "\n  coreset_ratio " in told.out
    assert "n_normal              12" in told.out and "files                 12 names" in told.out


# --- sample ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(normals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    detector = DCGAN(image_size=(16, 32), width=4, latent_dim=6, epochs=1, batch_size=4)
    detector.fit(normals, max_false_alarm=0.4, run=Run(say=lambda _: None))
    return detector.save(tmp_path_factory.mktemp("generator") / "made.amiss")


@pytest.mark.filterwarnings("ignore::amiss.errors.TrainingWarning")
def test_sample_writes_a_sheet_or_a_folder(
    generator: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = amiss(capsys, "sample", generator, "-o", tmp_path / "grid.png", "--count", "10",
                 "--columns", "4")  # fmt: skip
    assert told.status == 0 and "10 images of 16 x 32 px" in told.out
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == (4 * 34 - 2, 3 * 18 - 2)
    monkeypatch.setattr("amiss.cli_sample._AT_ONCE", 3)  # codes are the same in parts
    told = amiss(capsys, "sample", generator, "-o", tmp_path / "each", "--count", "10", "--json")
    assert told.json["count"] == 10 and told.json["height"] == 16
    names = sorted(path.name for path in (tmp_path / "each").iterdir())
    assert names == [f"{n}.png" for n in range(10)]
    with Image.open(tmp_path / "each" / "0.png") as one, Image.open(tmp_path / "grid.png") as sheet:
        assert np.array_equal(np.asarray(one), np.asarray(sheet)[:16, :32])
    with Image.open(tmp_path / "each" / "9.png") as one, Image.open(tmp_path / "grid.png") as sheet:
        assert np.array_equal(np.asarray(one), np.asarray(sheet)[36:52, 34:66])


def test_sample_refuses_what_it_cannot_do(
    generator: Path, artifact: Path, tmp_path: Path, capsys: Capture
) -> None:
    told = amiss(capsys, "sample", artifact, "-o", tmp_path / "x.png")
    assert told.status == 1 and "patchcore makes no images" in told.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    told = amiss(capsys, "sample", generator, "-o", tmp_path / "full")
    assert told.status == 1 and "no empty folder" in told.err
    told = amiss(capsys, "sample", generator, "-o", tmp_path / "new", "--columns", "3")
    assert told.status == 1 and "--columns=3 has no effect" in told.err
    (tmp_path / "file").touch()
    told = amiss(capsys, "sample", generator, "-o", tmp_path / "file" / "sub")
    assert told.status == 1 and "There is no folder" in told.err
    told = amiss(capsys, "sample", generator, "-o", tmp_path / "file")
    assert told.status == 1 and "no empty folder" in told.err
    told = amiss(capsys, "sample", generator, "-o", tmp_path / "x.png", "--count", "5000")
    assert told.status == 1 and "up to 4096 images" in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_sample_leaves_no_half_written_folder(
    generator: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OptionError("no more room")

    monkeypatch.setattr("amiss.data.images.write_png", fail)
    told = amiss(capsys, "sample", generator, "-o", tmp_path / "each", "--count", "3")
    assert told.status == 1 and "no more room" in told.err and not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    told = amiss(capsys, "sample", generator, "-o", tmp_path / "link", "--count", "3")
    assert told.status == 1 and not list((tmp_path / "there").iterdir())
    monkeypatch.setattr("amiss.data.images.write_png", write_png)
    monkeypatch.chdir(tmp_path / "there")
    for place in (".", tmp_path / "link"):
        told = amiss(capsys, "sample", generator, "-o", place, "--count", "3")
        assert told.status == 0 and len(list((tmp_path / "there").iterdir())) == 3
        for file in (tmp_path / "there").iterdir():
            file.unlink()
    monkeypatch.setattr(Path, "mkdir", lambda *_: (_ for _ in ()).throw(OSError(2, "no such")))
    told = amiss(capsys, "sample", generator, "-o", tmp_path / "each", "--count", "3")
    assert told.status == 1 and "each cannot be made: no such" in told.err
