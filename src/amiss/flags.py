"""Command line flags made from the fields of a method's `Config`: same names, help and defaults."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from amiss.console import parse_size


def flag(field: Any, hint: Any) -> inspect.Parameter:
    """A command line option for one field of a Config."""
    meta, default = field.metadata, field.default
    kind: Any = {"int | None": int | None}.get(str(hint), hint)
    if isinstance(default, tuple):
        kind, default = (
            str,
            "x".join(map(str, default)) if field.name == "image_size" else (",".join(default)),
        )
    text = meta["text"] + (f" (paper: {meta['paper']})" if meta["paper"] else "")
    annotation = Annotated[kind, typer.Option(help=text, rich_help_panel="Options of the method")]
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def option_value(name: str, value: Any) -> Any:
    """What the command line handed over, as the Config wants it."""
    if name == "image_size":
        return parse_size(value)
    if name == "layers":
        return tuple(part.strip() for part in value.split(","))
    return value
