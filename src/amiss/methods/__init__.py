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
    "dcgan": "amiss.methods.dcgan:DCGAN",
    "wgan": "amiss.methods.wgan:WGAN",
    "wgan_gp": "amiss.methods.wgan_gp:WGANGP",
    "anogan": "amiss.methods.anogan:AnoGAN",
    "egbad": "amiss.methods.egbad:EGBAD",
    "ganomaly": "amiss.methods.ganomaly:GANomaly",
    "fanogan": "amiss.methods.fanogan:FAnoGAN",
    "autoencoder": "amiss.methods.autoencoder:AutoEncoder",
    "memae": "amiss.methods.memae:MemAE",
    "daad": "amiss.methods.daad:DAAD",
    "nfad": "amiss.methods.nfad:NFAD",
    "bgad": "amiss.methods.bgad:BGAD",
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
    "dcgan": About("Radford et al., ICLR 2016, arXiv 1511.06434", False, True, False),
    "wgan": About("Arjovsky et al., ICML 2017, arXiv 1701.07875", False, True, False),
    "wgan_gp": About("Gulrajani et al., NeurIPS 2017, arXiv 1704.00028", False, True, False),
    "anogan": About(
        "Schlegl et al., IPMI 2017, arXiv 1703.05921",
        True,
        "the closest image is searched by running the networks backwards, hundreds of times for "
        "each image, and an exported graph runs forwards only",
        False,
    ),
    "egbad": About("Zenati et al., arXiv 1802.06222", True, True, False),
    "ganomaly": About("Akcay et al., ACCV 2018, arXiv 1805.06725", True, True, False),
    "fanogan": About("Schlegl et al., Medical Image Analysis 2019", True, True, False),
    "autoencoder": About(
        "baseline, as in Hou et al., ICCV 2021, arXiv 2107.13118", True, True, False
    ),
    "memae": About("Gong et al., ICCV 2019, arXiv 1904.02639", True, True, False),
    "daad": About("Hou et al., ICCV 2021, arXiv 2107.13118", True, True, False),
    "nfad": About(
        "Yao et al., CVPR 2023, arXiv 2207.01463 (the baseline in it)", True, True, False
    ),
    "bgad": About("Yao et al., CVPR 2023, arXiv 2207.01463", True, True, True),
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
