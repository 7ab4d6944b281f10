"""amiss finds what is amiss in an image after seeing only normal ones.

    import amiss

    detector = amiss.PatchCore(coreset_ratio=0.01).fit("photos/good")
    print(detector.predict("photos/new/0001.png").is_anomalous)

Names are loaded when they are first used: importing the package does no work and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amiss import memory, metrics
    from amiss.data.doctor import check
    from amiss.evaluation import evaluate
    from amiss.frames import predict_frames
    from amiss.methods.anogan import AnoGAN
    from amiss.methods.autoencoder import AutoEncoder
    from amiss.methods.bgad import BGAD
    from amiss.methods.daad import DAAD
    from amiss.methods.dcgan import DCGAN
    from amiss.methods.egbad import EGBAD
    from amiss.methods.fanogan import FAnoGAN
    from amiss.methods.fyd import FYD
    from amiss.methods.ganomaly import GANomaly
    from amiss.methods.memae import MemAE
    from amiss.methods.mkd import MKD
    from amiss.methods.nfad import NFAD
    from amiss.methods.padim import PaDiM
    from amiss.methods.patchcore import PatchCore
    from amiss.methods.spade import SPADE
    from amiss.methods.uninformed_students import UninformedStudents
    from amiss.methods.wgan import WGAN
    from amiss.methods.wgan_gp import WGANGP
    from amiss.outcome import Report
    from amiss.run import Run
    from amiss.runtime import load
    from amiss.types import ImageResult, Prediction, Record

__all__ = [
    "BGAD",
    "DAAD",
    "DCGAN",
    "EGBAD",
    "FYD",
    "MKD",
    "NFAD",
    "SPADE",
    "WGAN",
    "WGANGP",
    "AnoGAN",
    "AutoEncoder",
    "FAnoGAN",
    "GANomaly",
    "ImageResult",
    "MemAE",
    "PaDiM",
    "PatchCore",
    "Prediction",
    "Record",
    "Report",
    "Run",
    "UninformedStudents",
    "check",
    "evaluate",
    "load",
    "memory",
    "metrics",
    "predict_frames",
]

_PLACES = {
    "BGAD": "amiss.methods.bgad",
    "DAAD": "amiss.methods.daad",
    "DCGAN": "amiss.methods.dcgan",
    "EGBAD": "amiss.methods.egbad",
    "FYD": "amiss.methods.fyd",
    "MKD": "amiss.methods.mkd",
    "SPADE": "amiss.methods.spade",
    "WGAN": "amiss.methods.wgan",
    "WGANGP": "amiss.methods.wgan_gp",
    "AnoGAN": "amiss.methods.anogan",
    "AutoEncoder": "amiss.methods.autoencoder",
    "FAnoGAN": "amiss.methods.fanogan",
    "GANomaly": "amiss.methods.ganomaly",
    "ImageResult": "amiss.types",
    "NFAD": "amiss.methods.nfad",
    "MemAE": "amiss.methods.memae",
    "PaDiM": "amiss.methods.padim",
    "PatchCore": "amiss.methods.patchcore",
    "Prediction": "amiss.types",
    "Record": "amiss.types",
    "Report": "amiss.outcome",
    "Run": "amiss.run",
    "UninformedStudents": "amiss.methods.uninformed_students",
    "check": "amiss.data.doctor",
    "evaluate": "amiss.evaluation",
    "load": "amiss.runtime",
    "predict_frames": "amiss.frames",
}
_MODULES = ("memory", "metrics")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("amiss")
    if name not in _PLACES and name not in _MODULES:
        raise AttributeError(f"module 'amiss' has no attribute {name!r}")
    from amiss.errors import naming_extra
    from amiss.threads import spin_briefly

    spin_briefly()
    with naming_extra(f"amiss.{name}", "train"):
        if name in _MODULES:
            return importlib.import_module(f"amiss.{name}")
        value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
