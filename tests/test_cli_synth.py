"""`amiss synth`: sheets and folders of made defects."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from amiss.cli_synth import ForegroundName, GeneratorName, PlacementName
from amiss.data.foreground import FOREGROUNDS
from amiss.data.rpag import Placement
from amiss.data.synthesis import GENERATORS
from commands import amiss, files_below
from made_images import textures

Capture = pytest.CaptureFixture[str]


def read(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture(scope="module")
def with_known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that has defects with masks among its training images."""
    root = tmp_path_factory.mktemp("known")
    textures(root / "train" / "good", 5, seed=1)
    textures(root / "train" / "hole", 3, seed=2, defects=True, masks=root / "ground_truth/train")
    return root


def test_the_choices_are_those_of_the_library() -> None:
    assert [name.value for name in GeneratorName] == list(GENERATORS)
    assert [name.value for name in PlacementName] == list(get_args(Placement))
    assert [name.value for name in ForegroundName] == list(FOREGROUNDS)


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_sheet_holds_pairs_and_a_folder_images_with_masks(
    generator: str, with_known: Path, tmp_path: Path, capsys: Capture
) -> None:
    asked = ["synth", with_known, "--generator", generator, "--count", "4", "--size", "48x64"]
    told = amiss(capsys, *asked, "-o", tmp_path / "sheet.png")
    assert told.status == 0 and f"4 images of 48 x 64 px by {generator}, seed 0" in told.out
    sheet = read(tmp_path / "sheet.png")
    assert sheet.shape == (2 * 50 - 2, 2 * 130 - 2, 3)
    told = amiss(capsys, *asked, "-o", tmp_path / "each", "--json")
    assert told.json == {
        "path": str(tmp_path / "each"), "count": 4, "height": 48, "width": 64,
        "generator": generator, "seed": 0,
    }  # fmt: skip
    names = [f"{n:03}{end}.png" for n in range(4) for end in ("", "_mask")]
    assert sorted(path.name for path in (tmp_path / "each").iterdir()) == sorted(names)
    image, mask = read(tmp_path / "each" / "000.png"), read(tmp_path / "each" / "000_mask.png")
    assert (
        image.shape == (48, 64, 3) and mask.shape == (48, 64) and set(np.unique(mask)) == {0, 255}
    )
    # On the sheet the image stands first, and beside it the same with an outline about the mask.
    assert np.array_equal(sheet[:48, :64], image)
    beside = sheet[:48, 64:128]
    assert np.array_equal(beside[mask > 0], image[mask > 0])
    assert (beside[mask == 0] == (255, 40, 40)).all(axis=1).any()


def test_images_follow_from_the_seed_and_their_number(
    with_known: Path, tmp_path: Path, capsys: Capture
) -> None:
    asked = ["synth", with_known, "--size", "48"]
    amiss(capsys, *asked, "--count", "2", "-o", tmp_path / "two")
    amiss(capsys, *asked, "--count", "5", "-o", tmp_path / "five")
    amiss(capsys, *asked, "--count", "2", "--seed", "1", "-o", tmp_path / "other")
    two, five = files_below(tmp_path / "two"), files_below(tmp_path / "five")
    assert len(five) == 10 and two.items() <= five.items()
    assert files_below(tmp_path / "other")["001_mask.png"] != two["001_mask.png"]


def test_options_reach_the_generator(with_known: Path, tmp_path: Path, capsys: Capture) -> None:
    asked = ["synth", with_known, "--size", "48", "--count", "3"]
    made = []
    for number, more in enumerate(
        ([], ["--transforms", "0"], ["--placement", "in_place"], ["--foreground", "all"])
    ):
        assert amiss(capsys, *asked, *more, "-o", tmp_path / str(number)).status == 0
        made.append(files_below(tmp_path / str(number)))
    assert made[0] != made[1] != made[2] != made[0]
    assert made[3] == made[0]  # these are textures: otsu finds no object


def test_known_defects_may_come_from_elsewhere(
    normals: Path, labelled: Path, tmp_path: Path, capsys: Capture
) -> None:
    asked = ["synth", normals, "--size", "48x64", "--count", "2"]
    told = amiss(capsys, *asked, "--anomalous", labelled, "-o", tmp_path / "set")
    assert told.status == 0
    told = amiss(
        capsys, *asked, "--anomalous", labelled / "test" / "hole",
        "--mask-dir", labelled / "ground_truth" / "hole", "-o", tmp_path / "folder",
    )  # fmt: skip
    assert told.status == 0
    for folder in ("set", "folder"):
        mask = read(tmp_path / folder / "000_mask.png") > 0
        assert read(tmp_path / folder / "000.png")[mask].mean() > 160  # the defects are white


def test_rpag_without_known_defects_says_what_to_do(
    normals: Path, labelled: Path, tmp_path: Path, capsys: Capture
) -> None:
    for data in (normals, labelled):  # the second has defects, and all of them are for the test
        told = amiss(capsys, "synth", data, "-o", tmp_path / "x.png")
        assert told.status == 1 and "among the training images" in told.err
        assert "--anomalous FOLDER" in told.err and "--generator perlin" in told.err
    scratches = labelled / "test" / "scratch"
    told = amiss(capsys, "synth", normals, "--anomalous", scratches, "-o", tmp_path / "x.png")
    assert told.status == 1 and "none has a mask" in told.err and "--mask-dir" in told.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--generator", "perlin", "--placement", "random"], "--placement=random has no effect"),
        (["--generator", "cut_paste", "--transforms", "2"], "--transforms=2 has no effect"),
        (["--generator", "perlin", "--anomalous", "."], "--anomalous=. has no effect"),
        (["--generator", "perlin", "--mask-dir", "."], "--mask-dir=. has no effect"),
        (["--size", "8"], "out of range; allowed is 16 to 4096"),
        (["--size", "big"], "is not a size"),
        (["--count", "300"], "up to 256 pairs"),
    ],
)
def test_what_does_not_go_together_is_refused(
    flags: list[str], sentence: str, with_known: Path, tmp_path: Path, capsys: Capture
) -> None:
    told = amiss(capsys, "synth", with_known, "-o", tmp_path / "x.png", *flags)
    assert told.status == 1 and sentence in told.err
    assert not list(tmp_path.iterdir())


def test_wrong_choices_are_wrong_usage(with_known: Path, tmp_path: Path, capsys: Capture) -> None:
    for flags in (["--generator", "gan"], ["--placement", "here"], ["--transforms", "10"]):
        told = amiss(capsys, "synth", with_known, "-o", tmp_path / "x.png", *flags)
        assert told.status == 2 and not list(tmp_path.iterdir())


def test_a_folder_is_written_whole_or_not_at_all(
    with_known: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amiss.data import images
    from amiss.errors import DataError

    write, written = images.write_png, []

    def fail_at_the_third(array: npt.NDArray[np.uint8], path: Path) -> None:
        written.append(path)
        if len(written) == 3:
            raise DataError("no more room")
        write(array, path)

    monkeypatch.setattr("amiss.data.images.write_png", fail_at_the_third)
    told = amiss(capsys, "synth", with_known, "--size", "48", "-o", tmp_path / "each")
    assert told.status == 1 and "no more room" in told.err
    assert len(written) == 3 and not list(tmp_path.iterdir())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    told = amiss(capsys, "synth", with_known, "-o", tmp_path / "full")
    assert told.status == 1 and "no empty folder" in told.err
