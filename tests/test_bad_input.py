"""Bad input of every kind: a named error or a named skip, never a traceback, nothing half-written.

Each case makes its input in an empty folder and returns the command. The name beside it is the
error that must come; "usage" stands for wrong usage, exit status 2.
"""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import TINY_FLAGS, amiss, files_below
from made_images import textures, write

Arguments = list[object]
Case = Callable[[Path, Path], Arguments]
"""(empty folder, fitted artifact in it) -> the command"""

CASES: list[tuple[str, Case, str]] = []


def bad(error: str) -> Callable[[Case], Case]:
    """Put a case into the table."""

    def register(case: Case) -> Case:
        CASES.append((case.__name__, case, error))
        return case

    return register


def fit(data: object, folder: Path, *more: object) -> Arguments:
    return ["fit", "patchcore", data, "-o", folder / "out.amiss", *TINY_FLAGS, *more]


def good(folder: Path, count: int = 4) -> Path:
    return textures(folder / "good", count, seed=7)


def whiten(path: Path, size: tuple[int, int] = (60, 80), value: int = 255) -> Path:
    return write(np.full(size, value, np.uint8), path)


# --- fit: images -----------------------------------------------------------------------------


@bad("DataError")
def a_folder_that_is_not_there(folder: Path, part: Path) -> Arguments:
    return fit(folder / "nowhere", folder)


@bad("DataError")
def an_empty_folder(folder: Path, part: Path) -> Arguments:
    (folder / "data").mkdir()
    return fit(folder / "data", folder)


@bad("DataError")
def a_folder_without_images(folder: Path, part: Path) -> Arguments:
    (folder / "data").mkdir()
    (folder / "data" / "readme.txt").write_text("no image")
    return fit(folder / "data", folder)


@bad("DataError")
def one_image_instead_of_a_folder(folder: Path, part: Path) -> Arguments:
    return fit(good(folder) / "000.png", folder)


@bad("DataError")
def only_defects_to_learn_from(folder: Path, part: Path) -> Arguments:
    textures(folder / "data" / "train" / "scratch", 3, seed=1)
    return fit(folder / "data", folder)


@bad("ImageError")
def a_truncated_image(folder: Path, part: Path) -> Arguments:
    path = good(folder) / "002.png"
    path.write_bytes(path.read_bytes()[:2000])
    return fit(path.parent, folder)


@bad("ImageError")
def an_empty_file(folder: Path, part: Path) -> Arguments:
    (good(folder) / "zero.png").touch()
    return fit(folder / "good", folder)


@bad("ImageError")
def text_named_like_an_image(folder: Path, part: Path) -> Arguments:
    (good(folder) / "note.jpg").write_text("this is no picture")
    return fit(folder / "good", folder)


@bad("ImageError")
def an_image_of_several_pages(folder: Path, part: Path) -> Arguments:
    pages = [Image.new("L", (20, 20), i) for i in range(3)]
    pages[0].save(good(folder) / "pages.tif", save_all=True, append_images=pages[1:])
    return fit(folder / "good", folder)


@bad("ImageError")
def a_decompression_bomb(folder: Path, part: Path) -> Arguments:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    (good(folder) / "bomb.png").write_bytes(data)
    return fit(folder / "good", folder)


@bad("ImageError")
def a_folder_named_like_an_image_in_a_table(folder: Path, part: Path) -> Arguments:
    good(folder)
    (folder / "good" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "t.csv").write_text("path\ngood/x.png\n")
    return fit(folder / "t.csv", folder)


# --- fit: tables -----------------------------------------------------------------------------


@bad("DataError")
def a_table_with_a_missing_file(folder: Path, part: Path) -> Arguments:
    (folder / "t.csv").write_text("path,label\nnowhere.png,0\n")
    return fit(folder / "t.csv", folder)


@bad("DataError")
def a_table_with_an_unknown_column(folder: Path, part: Path) -> Arguments:
    good(folder)
    (folder / "t.csv").write_text("path,verdict\ngood/000.png,0\n")
    return fit(folder / "t.csv", folder)


@bad("DataError")
def a_table_with_an_unknown_label(folder: Path, part: Path) -> Arguments:
    good(folder)
    (folder / "t.csv").write_text("path,label\ngood/000.png,perhaps\n")
    return fit(folder / "t.csv", folder)


@bad("DataError")
def a_table_without_rows(folder: Path, part: Path) -> Arguments:
    (folder / "t.csv").write_text("path,label\n")
    return fit(folder / "t.csv", folder)


@bad("DataError")
def lines_that_are_no_json(folder: Path, part: Path) -> Arguments:
    (folder / "t.jsonl").write_text('{"path": \n')
    return fit(folder / "t.jsonl", folder)


@bad("DataError")
def a_table_that_is_no_text(folder: Path, part: Path) -> Arguments:
    (folder / "t.csv").write_bytes(bytes(range(256)))
    return fit(folder / "t.csv", folder)


# --- fit: region of interest -----------------------------------------------------------------


@bad("DataError")
def a_roi_that_is_all_black(folder: Path, part: Path) -> Arguments:
    return fit(good(folder), folder, "--roi", whiten(folder / "roi.png", value=0))


@bad("DataError")
def a_roi_of_another_aspect(folder: Path, part: Path) -> Arguments:
    return fit(good(folder), folder, "--roi", whiten(folder / "roi.png", (80, 80)))


@bad("ImageError")
def a_roi_that_is_not_there(folder: Path, part: Path) -> Arguments:
    return fit(good(folder), folder, "--roi", folder / "nowhere.png")


@bad("ImageError")
def a_roi_with_class_numbers(folder: Path, part: Path) -> Arguments:
    return fit(good(folder), folder, "--roi", whiten(folder / "roi.png", value=3))


# --- fit: options ----------------------------------------------------------------------------


def _option(name: str, error: str, *flags: object) -> None:
    def case(folder: Path, part: Path) -> Arguments:
        return fit(good(folder), folder, *flags)

    CASES.append((name, case, error))


_option("a_backbone_nobody_knows", "OptionError", "--backbone", "resnet5000")
_option("a_layer_the_backbone_has_not", "OptionError", "--layers", "4,7")
_option("layers_in_the_wrong_order", "OptionError", "--layers", "8,4")
_option("no_layers", "OptionError", "--layers", "")
_option("no_weights_for_this_backbone", "WeightsError", "--weights", "auto")
_option("a_weights_file_that_is_not_there", "WeightsError", "--weights", "nowhere.pth")
_option("a_share_above_one", "OptionError", "--coreset-ratio", 2)
_option("a_share_that_is_not_a_number", "OptionError", "--coreset-ratio", "nan")
_option("a_number_that_is_text", "usage", "--coreset-ratio", "many")
_option("an_even_neighbourhood", "OptionError", "--neighborhood", 4)
_option("a_choice_that_is_none", "OptionError", "--embedding", "magic")
_option("a_tiny_image_size", "OptionError", "--image-size", 4)
_option("an_image_size_that_is_text", "OptionError", "--image-size", "large")
_option("one_fold", "OptionError", "--folds", 1)
_option("a_false_alarm_rate_of_zero", "OptionError", "--max-false-alarm", 0)
_option("a_false_alarm_rate_of_two", "OptionError", "--max-false-alarm", 2)
_option("a_false_alarm_rate_of_nan", "OptionError", "--max-false-alarm", "nan")
_option("memory_that_is_no_amount", "OptionError", "--max-memory", "much")
_option("memory_for_nothing", "MemoryLimitError", "--max-memory", "1MiB")
_option("a_window_upside_down", "OptionError", "--window", "900:100")
_option("a_layout_nobody_knows", "OptionError", "--layout", "mvtech")
_option("a_negative_seed", "OptionError", "--seed", -1)
_option("no_threads", "OptionError", "--threads", 0)
_option("a_flag_nobody_knows", "usage", "--coreset-rato", 0.1)


@bad("usage")
def a_method_nobody_knows(folder: Path, part: Path) -> Arguments:
    return ["fit", "patchcroe", good(folder), "-o", folder / "out.amiss"]


@bad("usage")
def no_data(folder: Path, part: Path) -> Arguments:
    return ["fit", "patchcore", "-o", folder / "out.amiss"]


@bad("OptionError")
def an_output_of_another_suffix(folder: Path, part: Path) -> Arguments:
    return ["fit", "patchcore", good(folder), "-o", folder / "out.onnx", *TINY_FLAGS]


@bad("OptionError")
def an_output_in_no_folder(folder: Path, part: Path) -> Arguments:
    return ["fit", "patchcore", good(folder), "-o", folder / "no" / "out.amiss", *TINY_FLAGS]


@bad("OptionError")
def an_output_that_is_a_folder(folder: Path, part: Path) -> Arguments:
    (folder / "out.amiss").mkdir()
    return fit(good(folder), folder)


# --- fit: weights ----------------------------------------------------------------------------


@bad("WeightsError")
def weights_that_would_run_code(folder: Path, part: Path) -> Arguments:
    path = folder / "evil.pth"
    torch.save({"layer": Path("object")}, path)
    return fit(good(folder), folder, "--weights", path)


@bad("WeightsError")
def weights_that_are_a_bare_pickle(folder: Path, part: Path) -> Arguments:
    path = folder / "bare.pth"
    path.write_bytes(pickle.dumps({"a": 1}))
    return fit(good(folder), folder, "--weights", path)


@bad("WeightsError")
def weights_of_another_network(folder: Path, part: Path) -> Arguments:
    path = folder / "other.pth"
    torch.save({"conv.weight": torch.zeros(3, 3)}, path)
    return fit(good(folder), folder, "--weights", path)


@bad("WeightsError")
def weights_cut_short(folder: Path, part: Path) -> Arguments:
    buffer = io.BytesIO()
    torch.save({"conv.weight": torch.zeros(300, 3)}, buffer)
    path = folder / "short.pth"
    path.write_bytes(buffer.getvalue()[:900])
    return fit(good(folder), folder, "--weights", path)


@bad("WeightsError")
def a_safetensors_file_of_noise(folder: Path, part: Path) -> Arguments:
    path = folder / "noise.safetensors"
    path.write_bytes(bytes(range(256)))
    return fit(good(folder), folder, "--weights", path)


# --- predict ---------------------------------------------------------------------------------


@bad("ArtifactError")
def a_detector_that_is_not_there(folder: Path, part: Path) -> Arguments:
    return ["predict", folder / "nowhere.amiss", good(folder)]


@bad("ArtifactError")
def a_detector_that_is_text(folder: Path, part: Path) -> Arguments:
    (folder / "text.amiss").write_text("this is no detector")
    return ["predict", folder / "text.amiss", good(folder)]


@bad("ArtifactError")
def a_detector_cut_short(folder: Path, part: Path) -> Arguments:
    (folder / "short.amiss").write_bytes(part.read_bytes()[:-100])
    return ["predict", folder / "short.amiss", good(folder)]


@bad("ArtifactError")
def a_folder_as_detector(folder: Path, part: Path) -> Arguments:
    return ["predict", good(folder), folder]


@bad("OptionError")
def nothing_to_judge(folder: Path, part: Path) -> Arguments:
    return ["predict", part]


@bad("DataError")
def an_empty_folder_to_judge(folder: Path, part: Path) -> Arguments:
    (folder / "empty").mkdir()
    return ["predict", part, folder / "empty"]


@bad("DataError")
def an_empty_list_on_stdin(folder: Path, part: Path) -> Arguments:
    return ["predict", part, "-"]


@bad("OptionError")
def images_and_a_watched_folder(folder: Path, part: Path) -> Arguments:
    return ["predict", part, good(folder), "--watch", folder]


@bad("DataError")
def a_watched_folder_that_is_not_there(folder: Path, part: Path) -> Arguments:
    return ["predict", part, "--watch", folder / "nowhere"]


@bad("OptionError")
def a_table_into_no_folder(folder: Path, part: Path) -> Arguments:
    return ["predict", part, good(folder), "--csv", folder / "no" / "table.csv"]


@bad("OptionError")
def lines_into_a_folder(folder: Path, part: Path) -> Arguments:
    (folder / "lines.jsonl").mkdir()
    return ["predict", part, good(folder), "--jsonl", folder / "lines.jsonl"]


@bad("OptionError")
def heat_maps_into_a_file(folder: Path, part: Path) -> Arguments:
    (folder / "heat").write_text("a file")
    return ["predict", part, good(folder), "--heatmaps", folder / "heat"]


@bad("DataError")
def a_roi_of_another_aspect_to_judge_with(folder: Path, part: Path) -> Arguments:
    return ["predict", part, good(folder), "--roi", whiten(folder / "roi.png", (90, 30))]


# --- evaluate --------------------------------------------------------------------------------


@bad("DataError")
def nothing_labelled_to_evaluate(folder: Path, part: Path) -> Arguments:
    table = folder / "unlabelled.csv"
    names = [path.name for path in sorted(good(folder).iterdir())]
    rows = [f"{good(folder).name}/{name},,test" for name in names]
    table.write_text("\n".join(["path,label,split", *rows]) + "\n")
    return ["evaluate", part, table]


@bad("ImageError")
def an_unreadable_test_image(folder: Path, part: Path) -> Arguments:
    textures(folder / "data" / "good", 6, seed=31)
    textures(folder / "data" / "bad", 2, seed=32)
    (folder / "data" / "bad" / "000.png").write_bytes(b"")
    return ["evaluate", part, folder / "data"]


@bad("DataError")
def a_mask_of_another_size(folder: Path, part: Path) -> Arguments:
    data = folder / "data"
    textures(data / "train" / "good", 2, seed=33)
    textures(data / "test" / "good", 2, seed=34)
    textures(data / "test" / "scratch", 1, seed=35)
    whiten(data / "ground_truth" / "scratch" / "000_mask.png", (30, 40))
    return ["evaluate", part, data]


@bad("OptionError")
def a_report_into_no_folder(folder: Path, part: Path) -> Arguments:
    textures(folder / "data" / "good", 6, seed=31)
    textures(folder / "data" / "bad", 2, seed=32)
    return ["evaluate", part, folder / "data", "--report", folder / "no" / "page.html"]


# --- calibrate, inspect, check ---------------------------------------------------------------


def _calibrate(name: str, error: str, *flags: object) -> None:
    def case(folder: Path, part: Path) -> Arguments:
        return ["calibrate", part, *flags]

    CASES.append((name, case, error))


_calibrate("no_way_to_calibrate", "OptionError")
_calibrate("two_ways_to_calibrate", "OptionError", "--threshold", 1, "--max-false-alarm", 0.1)
_calibrate("a_threshold_of_nan", "OptionError", "--threshold", "nan")
_calibrate("a_rate_of_one", "OptionError", "--max-false-alarm", 1)
_calibrate("a_policy_without_images", "OptionError", "--policy", "f1")


@bad("OptionError")
def a_policy_nobody_knows(folder: Path, part: Path) -> Arguments:
    return ["calibrate", part, "--policy", "best", "--labelled", good(folder)]


@bad("OptionError")
def a_cost_of_nothing(folder: Path, part: Path) -> Arguments:
    textures(folder / "data" / "bad", 2, seed=42)
    textures(folder / "data" / "good", 2, seed=41)
    return ["calibrate", part, "--policy", "cost 0:1", "--labelled", folder / "data"]


@bad("CalibrationError")
def a_policy_with_normal_images_only(folder: Path, part: Path) -> Arguments:
    return ["calibrate", part, "--policy", "f1", "--labelled", good(folder)]


@bad("OptionError")
def labelled_images_that_nothing_uses(folder: Path, part: Path) -> Arguments:
    return ["calibrate", part, "--max-false-alarm", 0.2, "--labelled", good(folder)]


@bad("OptionError")
def calibrating_into_no_folder(folder: Path, part: Path) -> Arguments:
    return ["calibrate", part, "--threshold", 1, "-o", folder / "no" / "new.amiss"]


@bad("ArtifactError")
def inspecting_a_picture(folder: Path, part: Path) -> Arguments:
    return ["inspect", good(folder) / "000.png"]


@bad("DataError")
def checking_nothing(folder: Path, part: Path) -> Arguments:
    return ["check", folder / "nowhere"]


@bad("usage")
def a_command_nobody_knows(folder: Path, part: Path) -> Arguments:
    return ["train", good(folder)]


# --- the test --------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "error"), [pytest.param(c, e, id=n) for n, c, e in CASES])
def test_bad_input_is_a_named_error_and_leaves_nothing(
    case: Case,
    error: str,
    tmp_path: Path,
    artifact: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = tmp_path / "part.amiss"
    part.write_bytes(artifact.read_bytes())
    arguments = case(tmp_path, part)
    before = files_below(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    told = amiss(capsys, *arguments)
    if error == "usage":
        assert told.status == 2 and not told.out
        assert "Error" in told.err or "Usage" in told.err
    else:
        assert told.status == 1, told
        assert told.err.splitlines()[-1].strip() and f"{error}: " in told.err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    told = amiss(capsys, *arguments, "--json")
    if error == "usage":
        assert told.status == 2
    else:
        assert told.status == 1
        assert told.json.keys() == {"error", "message", "hint"}
        assert told.json["error"] == error and told.json["message"].strip()
    assert files_below(tmp_path) == before


def test_there_are_more_than_twenty_kinds() -> None:
    assert len({name for name, _, _ in CASES}) == len(CASES) > 20


def test_unreadable_images_are_skipped_by_name_and_the_others_judged(
    tmp_path: Path, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = good(tmp_path)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    whole = (folder / "000.png").read_bytes()
    (folder / "short.png").write_bytes(whole[: len(whole) // 2])
    missing = tmp_path / "nowhere.png"
    told = amiss(capsys, "predict", artifact, folder, missing)
    assert told.status == 0 and len(told.out.splitlines()) == 4
    for name in ("empty.png", "text.png", "short.png", "nowhere.png"):
        assert f"{name}: " in told.err
    found = amiss(capsys, "predict", artifact, folder, missing, "--json").json
    assert len(found["results"]) == 4
    assert [Path(row["path"]).name for row in found["skipped"]] == [
        "empty.png", "short.png", "text.png", "nowhere.png"
    ]  # fmt: skip
    assert all(row["message"] for row in found["skipped"])
