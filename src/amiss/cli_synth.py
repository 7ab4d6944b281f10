"""`amiss synth`: made defects to look at, before a detector learns from them."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amiss.cli_sample import appearing, require_sense
from amiss.console import parse_size, print_json
from amiss.errors import DataError, OptionError
from amiss.flags import Json, MaskDir

if TYPE_CHECKING:
    from amiss.data.defects import Generator, Synthetic
    from amiss.data.geometry import Size
    from amiss.data.index import Dataset
    from amiss.types import UInt8

_ON_A_SHEET = 256
_OUTLINE = (255, 40, 40)
_SOURCES = 64  # normal images that patches are cut from, kept in memory


class GeneratorName(StrEnum):
    """The keys of `amiss.data.synthesis.GENERATORS`."""

    rpag = "rpag"
    perlin = "perlin"
    cut_paste = "cut_paste"


class PlacementName(StrEnum):
    """What `amiss.data.rpag.Placement` allows."""

    random = "random"
    in_place = "in_place"


class ForegroundName(StrEnum):
    """The names in `amiss.data.foreground.FOREGROUNDS`."""

    otsu = "otsu"
    all = "all"


def synth(  # noqa: PLR0913 - one parameter per flag
    data: Annotated[str, typer.Argument(help="Folder, table or name with normal images.")],
    *,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A .png file for all in one; else a folder."),
    ],
    generator: Annotated[
        GeneratorName,
        typer.Option(help="rpag pastes known defects, perlin textures, cut_paste normal patches."),
    ] = GeneratorName.rpag,
    anomalous: Annotated[
        Path | None,
        typer.Option(help="Known defects with masks, where the training images hold none. rpag."),
    ] = None,
    mask_dir: MaskDir = None,
    count: Annotated[int, typer.Option(help="How many images.", min=1, max=100_000)] = 16,
    size: Annotated[str, typer.Option(help="Height and width, such as 256 or 256x320.")] = "256",
    seed: Annotated[int, typer.Option(help="Of all that is random.", min=0)] = 0,
    transforms: Annotated[
        int | None,
        typer.Option(help="How many of nine change a defect; 3 if left. rpag.", min=0, max=9),
    ] = None,
    placement: Annotated[
        PlacementName | None,
        typer.Option(help="Anywhere on the object, or where it was; random if left. rpag."),
    ] = None,
    foreground: Annotated[
        ForegroundName | None,
        typer.Option(help="Where: otsu finds the object; if left, all for perlin, else otsu."),
    ] = None,
    json: Json = False,
) -> None:
    """Write images with made defects, to see what a method that learns from them would be shown.

    A .png holds pairs: the image, and the same with its mask outlined. A folder holds NNN.png and
    NNN_mask.png for each."""
    from amiss.data.index import index

    frame = parse_size(size)
    output = output.resolve()
    _require_room(output, count, frame)
    only_rpag = {
        "anomalous": anomalous, "mask-dir": mask_dir, "transforms": transforms,
        "placement": placement,
    }  # fmt: skip
    _require_use(generator, only_rpag)
    # Masks elsewhere are those of the known defects: of the other set, where there is one.
    dataset = index(data, mask_dir=mask_dir if anomalous is None else None)
    if not dataset.train:
        raise DataError(f"{data}: holds no normal images to train on.")
    options: dict[str, Any] = {}
    if foreground is not None:
        options["foreground"] = foreground.value
    if transforms is not None:
        options["count"] = transforms
    if placement is not None:
        options["placement"] = placement.value
    needs = _needs(generator, dataset, (anomalous, mask_dir), frame, seed)
    made = _made(_generator(generator, needs, options), dataset, (count, seed), frame)
    _write(made, output, count)
    if json:
        height, width = frame
        print_json(
            {"path": str(output), "count": count, "height": height, "width": width,
             "generator": generator.value, "seed": seed}
        )  # fmt: skip
    else:
        print(
            f"{output}: {count} images of {frame[0]} x {frame[1]} px by {generator.value}, "
            f"seed {seed}"
        )


def _require_room(output: Path, count: int, frame: Size) -> None:
    """Raise OptionError, before any work, for what cannot be written."""
    require_sense(output, count, None)
    if not all(16 <= side <= 4096 for side in frame):
        raise OptionError(f"size={frame[0]}x{frame[1]} is out of range; allowed is 16 to 4096.")
    if output.suffix.lower() == ".png" and count > _ON_A_SHEET:
        raise OptionError(
            f"--count={count}: a sheet holds up to {_ON_A_SHEET} pairs.",
            hint="Name a folder for more.",
        )


def _require_use(generator: GeneratorName, given: dict[str, Any]) -> None:
    """Raise OptionError for what only RPAG has a use for."""
    if generator is GeneratorName.rpag:
        return
    for name, value in given.items():
        if value is not None:
            raise OptionError(
                f"--{name}={value} has no effect: {generator.value} pastes no known defects.",
                hint=f"Leave --{name} out, or take --generator rpag.",
            )


def _needs(
    generator: GeneratorName,
    dataset: Dataset,
    anomalous: tuple[Path | None, Path | None],
    frame: Size,
    seed: int,
) -> Any:
    """What a generator is made of: defects, pictures or normal images."""
    from amiss.data.synthesis import defect_records, read_defects

    if generator is GeneratorName.perlin:
        return None
    if generator is GeneratorName.cut_paste:
        return _some_normals(dataset, frame, seed)
    known, mask_dir = anomalous
    if known is not None:
        return read_defects(defect_records(known, mask_dir), frame)
    records = [record for record in dataset.train_anomalous if record.masks]
    if not records:
        raise DataError(
            f"rpag pastes known defects, and among the training images of {dataset.name} none has "
            "a mask.",
            hint="Name some: --anomalous FOLDER, with --mask-dir FOLDER where the masks lie "
            "elsewhere; or take --generator perlin or cut_paste, which need none.",
        )
    return read_defects(records, frame)


def _some_normals(dataset: Dataset, frame: Size, seed: int) -> list[UInt8]:
    """Up to `_SOURCES` normal images, drawn by `seed`."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(dataset.train))[:_SOURCES]
    return [_read(dataset, int(number), frame) for number in order]


def _generator(name: GeneratorName, needs: Any, options: dict[str, Any]) -> Generator:
    from amiss.data.synthesis import GENERATORS

    made: Generator = GENERATORS[name.value](needs, **options)
    return made


def _made(
    generator: Generator, dataset: Dataset, count_and_seed: tuple[int, int], frame: Size
) -> Iterator[Synthetic]:
    """Image k follows from the seed and k alone, however many there are."""
    import numpy as np

    count, seed = count_and_seed
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        normal = _read(dataset, int(rng.integers(len(dataset.train))), frame)
        yield generator(normal, rng, None)


def _read(dataset: Dataset, number: int, frame: Size) -> UInt8:
    from amiss.data.geometry import resize_image
    from amiss.data.images import read_image

    record = dataset.train[number]
    return resize_image(read_image(record.path, crop=record.crop), frame)[0]


def _write(made: Iterator[Synthetic], output: Path, count: int) -> None:
    import numpy as np

    from amiss.data.grid import grid
    from amiss.data.images import write_png
    from amiss.report.overlay import outline

    if output.suffix.lower() == ".png":
        pairs = [
            np.concatenate([image, outline(image, mask, _OUTLINE)], axis=1) for image, mask in made
        ]
        write_png(grid(np.stack(pairs)), output)
        return
    with appearing(output) as folder:
        for number, (image, mask) in enumerate(made):
            name = f"{number:03}"
            write_png(image, folder / f"{name}.png")
            write_png(mask, folder / f"{name}_mask.png")
