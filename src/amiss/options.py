"""Hyper-parameters as data: each method's frozen `Config` declares its fields with `option`.

The command line takes its flags, their help and their ranges from here; so do the docs. Ranges are
checked once, when a `Config` is made.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amiss.data.geometry import ResizeMode
from amiss.errors import OptionError


def option(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    paper: str = "",
) -> Any:
    """A dataclass field with its meaning, its inclusive range or choices, and the paper's value."""
    metadata = {"text": text, "low": low, "high": high, "choices": choices, "paper": paper}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options that every method has: the frame an image is brought to."""

    image_size: tuple[int, int] = option(
        (256, 256), "height and width of the network's input, in pixels", low=16, high=4096
    )
    resize: str = option(
        "squash",
        "squash to the input size, or letterbox: keep the aspect and leave the padding out",
        choices=("squash", "letterbox"),
    )

    def __post_init__(self) -> None:
        side: Any = self.image_size
        if isinstance(side, int) and not isinstance(side, bool):  # 256 is 256 x 256
            object.__setattr__(self, "image_size", (side, side))
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            _check(
                type(self).__name__.removesuffix("Config"),
                field,
                hints[field.name],
                getattr(self, field.name),
            )

    def refuse_unused(self, names: Sequence[str], reason: str) -> None:
        """Raises OptionError where one of these options is not at its default: it would have no
        effect, for the `reason` given."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name in names:
            value = getattr(self, name)
            if value != defaults[name]:
                raise OptionError(
                    f"{name}={value!r} has no effect: {reason}.",
                    hint=f"Leave {name} out, or change what makes it idle.",
                )

    @property
    def resize_mode(self) -> ResizeMode:
        """`resize` as the type that resizing wants."""
        return "letterbox" if self.resize == "letterbox" else "squash"

    def as_dict(self) -> dict[str, Any]:
        """The options of JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> typing.Self:
        """The reverse of `as_dict`; an unknown name is an OptionError."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise OptionError(
                f"{cls.__name__.removesuffix('Config')} has no option {unknown[0]!r}."
            )
        fixed: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**fixed)


def _check(owner: str, field: dataclasses.Field[Any], hint: Any, value: Any) -> None:
    meta = field.metadata
    if not _is_a(value, hint):
        raise OptionError(
            f"{field.name}={value!r} is of the wrong type for {owner}.",
            hint=f"Expected {_type_name(hint)}: {meta['text']}.",
        )
    if meta["choices"] is not None and value not in meta["choices"]:
        raise OptionError(
            f"{field.name}={value!r} is not known to {owner}.",
            hint=f"Choose from {', '.join(meta['choices'])}.",
        )
    low, high = meta["low"], meta["high"]
    numbers = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        if isinstance(number, int | float) and not isinstance(number, bool):
            too_low = low is not None and not number >= low  # also catches nan
            too_high = high is not None and not number <= high
            if too_low or too_high:
                raise OptionError(
                    f"{field.name}={value!r} is out of range for {owner}.",
                    hint=f"Allowed: {low if low is not None else '-inf'} to "
                    f"{high if high is not None else 'inf'} ({meta['text']}).",
                )


def _is_a(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_is_a(value, a) for a in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(value) == len(kinds) > 0 and all(map(_is_a, value, kinds))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
