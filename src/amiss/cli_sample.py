"""`amiss sample`: images that a detector's generator makes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amiss.console import print_json, require_writable
from amiss.errors import OptionError
from amiss.flags import Json, Threads


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
    from amiss.data.tree import IMAGE_SUFFIXES
    from amiss.runtime import load_detector
    from amiss.threads import set_threads

    set_threads(threads)
    is_sheet = output.suffix.lower() == ".png"
    if not is_sheet and output.suffix.lower() in IMAGE_SUFFIXES:
        raise OptionError(f"{output}: a sheet is a PNG.", hint="Name a .png file, or a folder.")
    if columns is not None and not is_sheet:
        raise OptionError(
            f"--columns={columns} has no effect: {output} is a folder.",
            hint="Give a .png, or leave --columns out.",
        )
    if is_sheet:
        require_writable(output)
    elif output.exists() and (output.is_file() or any(output.iterdir())):
        raise OptionError(
            f"{output} is no empty folder.", hint="Name a new folder, or a .png for all in one."
        )
    made = load_detector(detector).sample(count, seed=seed)
    if is_sheet:
        write_png(grid(made, columns=columns), output)
    else:
        output.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(made):
            write_png(picture, output / f"{number:0{len(str(count - 1))}}.png")
    n, height, width, _ = made.shape
    if json:
        print_json({"path": str(output), "count": n, "height": height, "width": width})
    else:
        print(f"{output}: {n} images of {height} x {width} px, seed {seed}")
