"""Command line flags: those that commands share, and those made from a method's `Config`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from amiss.console import parse_size
from amiss.errors import OptionError


def flag(field: Any, hint: Any) -> inspect.Parameter:
    """A command line option for one field of a Config."""
    meta, default = field.metadata, field.default
    kind: Any = {"int | None": int | None}.get(str(hint), hint)
    if isinstance(default, tuple):
        kind, default = (
            str,
            ("x" if field.name == "image_size" else ",").join(map(str, default)),
        )
    text = meta["text"] + (f" (paper: {meta['paper']})" if meta["paper"] else "")
    allowed = "|".join(meta["choices"]) if meta["choices"] else None
    annotation = Annotated[
        kind,
        typer.Option(help=text, metavar=allowed, rich_help_panel="Options of the method"),
    ]
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def option_value(field: Any, value: Any) -> Any:
    """What the command line handed over for one field of a Config, as that wants it."""
    if field.name == "image_size":
        return parse_size(value)
    if not isinstance(field.default, tuple):
        return value
    if isinstance(field.default[0], int):
        return _whole_numbers(field.name, value, field.default)
    return tuple(part.strip() for part in value.split(","))


def _whole_numbers(name: str, value: str, default: tuple[int, ...]) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise OptionError(
            f"{name}={value!r} is no list of numbers.",
            hint=f"Write them as {','.join(map(str, default))}.",
        )
    return tuple(map(int, parts))


# --- flags that several commands share; what is found in a set depends on the last four

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, no more.")]
Threads = Annotated[int | None, typer.Option(help="Threads to compute on; all cores by default.")]
Device = Annotated[str, typer.Option(help="Of methods that train: cpu, cuda or mps.")]
Roi = Annotated[
    Path | None, typer.Option(help="One mask for all images: white is looked at, black is not.")
]
Window = Annotated[
    str, typer.Option(help="Intensity window of 16-bit images: percentile, full, or LOW:HIGH.")
]
MaxMemory = Annotated[
    str | None, typer.Option(help="Memory that may be used, such as 2GiB; predicted and kept.")
]
Layout = Annotated[
    str | None, typer.Option(help="Layout of the data, where recognition on sight is wrong.")
]
MaskDir = Annotated[
    Path | None, typer.Option(help="Folder of the masks, where they lie outside the set.")
]
TestFraction = Annotated[
    float,
    typer.Option(
        help="Share of the normal images to judge on, where the set has no split; "
        "the same for fit and evaluate."
    ),
]
ElpvAnomalous = Annotated[
    float, typer.Option(help="ELPV: defect probability from which on a cell is anomalous.")
]
