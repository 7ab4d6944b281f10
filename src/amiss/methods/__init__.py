"""The registry: every method by its id, a literal table that imports nothing."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

from amiss.errors import OptionError, naming_extra

if TYPE_CHECKING:
    from amiss.methods.base import Detector

METHODS = {
    "spade": "amiss.methods.spade:SPADE",
    "padim": "amiss.methods.padim:PaDiM",
    "patchcore": "amiss.methods.patchcore:PatchCore",
    "fyd": "amiss.methods.fyd:FYD",
    "uninformed_students": "amiss.methods.uninformed_students:UninformedStudents",
    "mkd": "amiss.methods.mkd:MKD",
    "ganomaly": "amiss.methods.ganomaly:GANomaly",
}


class About(NamedTuple):
    """What `amiss methods` says, also where the method itself cannot be imported: the class
    attributes of the same names. `exportable`: True, or the reason why not."""

    paper: str
    localizes: bool
    exportable: bool | str
    learns_from_anomalies: bool


ABOUT = {
    "spade": About(
        "Cohen and Hoshen, arXiv 2005.02357",
        True,
        "each image is compared with other normal images than the one before, piece by piece, "
        "which a fixed graph does not hold",
        False,
    ),
    "padim": About("Defard et al., ICPR 2020 workshops, arXiv 2011.08785", True, True, False),
    "patchcore": About("Roth et al., CVPR 2022, arXiv 2106.08265", True, True, False),
    "fyd": About("Zheng et al., ICME 2022, arXiv 2110.04538", True, True, False),
    "uninformed_students": About("Bergmann et al., CVPR 2020, arXiv 1911.02357", True, True, False),
    "mkd": About(
        "Salehi et al., CVPR 2021, arXiv 2011.11108",
        True,
        "the map is a gradient, which is computed by running the networks backwards, and an "
        "exported graph runs forwards only",
        False,
    ),
    "ganomaly": About("Akcay et al., ACCV 2018, arXiv 1805.06725", True, True, False),
}


def method_class(method: str) -> type[Detector]:
    """The class of a method id.

    Raises:
        OptionError: no such id; names the closest.
        MissingDependencyError: torch or another training library is not installed.
    """
    if method not in METHODS:
        near = get_close_matches(method, METHODS, n=1)
        raise OptionError(
            f"There is no method {method!r}.",
            hint=(f"Did you mean {near[0]}? " if near else "") + f"Methods: {', '.join(METHODS)}.",
        )
    module, name = METHODS[method].split(":")
    with naming_extra(f"The method {method}", "train"):
        found: type[Detector] = getattr(importlib.import_module(module), name)
    return found
