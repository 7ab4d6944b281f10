"""`amiss sample`: images that a detector's generator makes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from amiss.console import print_json, require_writable
from amiss.errors import OptionError
from amiss.flags import Json, Threads

_ON_A_SHEET = 4096
_AT_ONCE = 256  # images in memory


def sample(
    detector: Annotated[Path, typer.Argument(help="A file made by `amiss fit`.")],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A .png file for all in one; else a folder, a file for each."
        ),
    ],
    count: Annotated[int, typer.Option(help="How many images.", min=1, max=100_000)] = 64,
    seed: Annotated[int, typer.Option(help="Of the codes they are made of.", min=0)] = 0,
    columns: Annotated[
        int | None, typer.Option(help="Images in a row of a .png; about a square if left.", min=1)
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Write images that the generator of a detector makes: dcgan, wgan, wgan_gp, anogan, egbad,
    fanogan."""
    from amiss.data.grid import grid
    from amiss.data.images import write_png
    from amiss.runtime import load_detector
    from amiss.threads import set_threads

    set_threads(threads)
    output = output.resolve()  # "." has no name, and a link is not what it leads to
    is_sheet = output.suffix.lower() == ".png"
    require_sense(output, count, columns)
    made = load_detector(detector)
    if is_sheet:
        found = made.sample(count, seed=seed)
        write_png(grid(found, columns=columns), output)
    else:
        with appearing(output) as folder:
            for start in range(0, count, _AT_ONCE):
                found = made.sample(min(_AT_ONCE, count - start), seed=seed, start=start)
                for number, picture in enumerate(found, start):
                    write_png(picture, folder / f"{number:0{len(str(count - 1))}}.png")
    _, height, width, _ = found.shape
    if json:
        print_json({"path": str(output), "count": count, "height": height, "width": width})
    else:
        print(f"{output}: {count} images of {height} x {width} px, seed {seed}")


def require_sense(output: Path, count: int, columns: int | None) -> None:
    """Raise OptionError, before any work, for what does not go together."""
    from amiss.data.tree import IMAGE_SUFFIXES

    is_sheet = output.suffix.lower() == ".png"
    if not is_sheet and output.suffix.lower() in IMAGE_SUFFIXES:
        raise OptionError(f"{output}: a sheet is a PNG.", hint="Name a .png file, or a folder.")
    if columns is not None and not is_sheet:
        raise OptionError(
            f"--columns={columns} has no effect: {output} is a folder.",
            hint="Give a .png, or leave --columns out.",
        )
    if is_sheet and count > _ON_A_SHEET:
        raise OptionError(
            f"--count={count}: a sheet holds up to {_ON_A_SHEET} images.",
            hint="Name a folder for more.",
        )
    if is_sheet or not output.exists():
        require_writable(output)
    elif output.is_file() or any(output.iterdir()):
        raise OptionError(
            f"{output} is no empty folder.", hint="Name a new folder, or a .png for all in one."
        )


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name of `folder` when all is written; nothing is left
    behind where that comes to nothing."""
    name = f".{folder.name}.{os.getpid()}.tmp"
    temporary = folder / name if folder.exists() else folder.with_name(name)
    try:
        temporary.mkdir()
    except OSError as error:
        raise OptionError(f"{folder} cannot be made: {error.strerror}.") from error
    try:
        yield temporary
        if folder.exists():  # empty, and it stays what it is: its owner, its place in the tree
            for file in temporary.iterdir():
                file.rename(folder / file.name)
        else:
            temporary.rename(folder)
    except OSError as error:
        raise OptionError(f"{folder} cannot be written to: {error.strerror}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
