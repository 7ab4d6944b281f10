"""Options as data: types, ranges, choices, and the errors that name them."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import amiss
from amiss.errors import OptionError
from amiss.methods import METHODS, method_class
from amiss.options import Config, option


@dataclass(frozen=True, kw_only=True)
class Sample(Config):
    """One option of each kind."""

    count: int = option(3, "how many", low=1, high=9)
    share: float = option(0.5, "how much", low=0, high=1)
    way: str = option("slow", "how", choices=("slow", "fast"))
    limit: int | None = option(None, "at most", low=1)
    names: tuple[str, ...] = option(("a",), "which")
    is_loud: bool = option(False, "whether to shout")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"count": 1},
        {"count": 9},
        {"share": 0},
        {"share": 1.0},
        {"way": "fast"},
        {"limit": 5},
        {"names": ("a", "b", "c")},
        {"is_loud": True},
        {"image_size": (16, 4096), "resize": "letterbox"},
    ],
)
def test_what_is_allowed_is_taken_and_comes_back(options: dict[str, Any]) -> None:
    config = Sample(**options)
    assert all(getattr(config, k) == v for k, v in options.items())
    assert Sample.from_dict(config.as_dict()) == config


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"count": 0}, "1 to 9"),
        ({"count": 10}, "1 to 9"),
        ({"count": 2.0}, "int"),
        ({"count": True}, "int"),
        ({"count": None}, "int"),
        ({"share": -0.1}, "0 to 1"),
        ({"share": float("nan")}, "0 to 1"),
        ({"share": float("inf")}, "0 to 1"),
        ({"share": "half"}, "float"),
        ({"way": "quick"}, "slow, fast"),
        ({"limit": 0}, "1 to inf"),
        ({"limit": "3"}, "int"),
        ({"names": ()}, "tuple"),
        ({"names": ("a", 3)}, "tuple"),
        ({"names": ["a"]}, "tuple"),
        ({"is_loud": 1}, "bool"),
        ({"image_size": (15, 64)}, "16 to 4096"),
        ({"image_size": (64, 64, 64)}, "tuple"),
        ({"resize": "crop"}, "squash, letterbox"),
    ],
)
def test_what_is_not_allowed_names_the_option_and_what_is(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(OptionError) as caught:
        Sample(**options)
    ((name, value),) = options.items()
    assert f"{name}={value!r}" in caught.value.message and "Sample" in caught.value.message
    assert says in caught.value.hint


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sample().count = 4  # type: ignore[misc]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(OptionError, match="'colour'"):
        Sample.from_dict({"colour": 1})


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(OptionError) as caught:
        method_class("patchcorre")
    assert "patchcorre" in caught.value.message and "Did you mean patchcore" in caught.value.hint


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_of_every_method_are_allowed(method: str) -> None:
    assert method_class(method).config_type() is not None


@pytest.mark.parametrize("method", METHODS)
def test_ranges_hold_their_defaults_and_choices_theirs(method: str) -> None:
    for field in dataclasses.fields(method_class(method).config_type):
        meta = field.metadata
        assert meta["choices"] is None or field.default in meta["choices"]
        assert meta["low"] is None or meta["high"] is None or meta["low"] <= meta["high"]


@pytest.mark.parametrize("method", METHODS)
def test_the_page_of_a_method_lists_its_options_as_they_are(method: str) -> None:
    place = Path(__file__).parents[2] / "docs" / "make.py"
    spec = importlib.util.spec_from_file_location("docs_make", place)
    assert spec is not None and spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    page = (place.parent / "methods" / f"{method}.md").read_text(encoding="utf-8")
    assert make.options_table(method) in page, "run `make docs`"


def test_one_side_is_that_of_a_square() -> None:
    assert amiss.PaDiM(image_size=96).config == amiss.PaDiM(image_size=(96, 96)).config  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="16 to 4096"):
        amiss.PaDiM(image_size=8)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="wrong type for PaDiM"):
        amiss.PaDiM(image_size=True)  # type: ignore[arg-type]
