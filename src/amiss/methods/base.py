"""`Detector`: what every method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from amiss.data.geometry import fit_frame, resize_mask
from amiss.data.images import read_mask
from amiss.data.index import Source
from amiss.errors import NotFittedError, OptionError
from amiss.learning.normals import Normals
from amiss.options import Config
from amiss.run import Run
from amiss.types import ImageResult, Prediction, UInt8

if TYPE_CHECKING:
    from amiss.calibration import Calibration
    from amiss.learning.held_out import HeldOut
    from amiss.learning.known_defects import KnownDefects


class Detector(nn.Module, ABC):
    """Base of every method. Below it no class inherits from another method.

    A subclass stores its options in a frozen `Config`, learns in `learn`, scores in `forward`, and
    says what to store in `artifact` and how to come back in `restore`.
    """

    id: ClassVar[str]
    paper: ClassVar[str]
    localizes: ClassVar[bool]
    exportable: ClassVar[bool | str]  # True, or the reason why not
    learns_from_anomalies: ClassVar[bool]
    trains: ClassVar[bool] = False  # by gradients: on a device, in a precision, with a log
    together: ClassVar[int] = 1  # images that are judged at once; 1: each by itself, on its core
    config_type: ClassVar[type[Config]]

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.calibration: Calibration | None = None
        self.training_facts: dict[str, Any] = {}  # what it was fitted on, for the manifest
        self.training_digests: UInt8 = np.empty((0, 8), dtype=np.uint8)
        # Labelled images that a threshold was chosen on: seen too, though not learned from.
        self.labelled_digests: UInt8 = np.empty((0, 8), dtype=np.uint8)
        self.metrics: dict[str, Any] = {}  # of the last evaluation that was stored
        self.roi: Tensor | None = None  # (h, w) bool, the one mask given at fit

    # --- what a method writes ----------------------------------------------------------------

    @abstractmethod
    def learn(self, images: Normals, run: Run) -> HeldOut:
        """Learn from normal images; return what held-out normals score.

        A second call forgets the first.
        """

    def learn_with(self, images: Normals, defects: KnownDefects | None, run: Run) -> HeldOut:
        """As `learn`, from known defects as well: of methods that `learns_from_anomalies`."""
        raise OptionError(
            f"{self.id} learns from normal images alone.", hint="bgad learns from both."
        )

    @abstractmethod
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        """Score images.

        images: (B, 3, H, W) uint8 RGB at the input size. roi: (B, H, W) bool, True where to look,
        or None for everywhere. Scores do not depend on the other images of the batch.
        """

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether `forward` may be called."""

    @abstractmethod
    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(facts of JSON types, tensors) that `restore` needs, and nothing else."""

    @abstractmethod
    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Become what `artifact` described; raises KeyError where something is missing."""

    def export_obstacle(self) -> str | None:
        """Why this fitted detector cannot be exported, or None."""
        return None if self.exportable is True else str(self.exportable)

    def score_scale(self) -> float:
        """How large the numbers are that a score is the difference of, where it is one: so much
        larger than the score itself is what rounding takes from it."""
        return 0.0

    def summary(self) -> str:
        """One sentence on what was learned, for the end of a fit."""
        return f"{self.id}: fitted"

    def evidence(self, images: Tensor, roi: Tensor | None = None) -> list[dict[str, Any]] | None:
        """Per image, which normal patch the most anomalous one was compared with; None where the
        method has no such thing. Keys: `image` (number of the training image), `box` (top, left,
        bottom, right as shares of its height and width), `distance`."""
        return None

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> UInt8:
        """n images (n, H, W, 3) uint8 RGB that the detector's generator makes of codes drawn by
        `seed`: those from number `start` on, so that many can be made in parts.

        Raises OptionError for a method that makes none, and NotFittedError.
        """
        raise OptionError(
            f"{self.id} makes no images.",
            hint="dcgan, wgan, wgan_gp, anogan, egbad and fanogan do.",
        )

    def pictures(self) -> list[tuple[int, UInt8]]:
        """What a generator made of the same codes as it learned: (steps done, (n, H, W, 3) uint8),
        in their order; empty where there is no generator."""
        return []

    def reconstruct(self, images: Tensor, roi: Tensor | None = None) -> Tensor | None:
        """What the method's networks make of images (B, 3, H, W) uint8, in the same form; None
        where they make nothing. Arguments as in `forward`."""
        return None

    def about(self) -> dict[str, Any]:
        """How the detector came to be, for reports: method, options, backbone, data; without the
        long lists."""
        facts = dict(self.artifact()[0])
        long = {"steps", "outputs"}  # of the network
        backbone = {k: v for k, v in facts.pop("backbone", {}).items() if k not in long}
        training = {k: v for k, v in self.training_facts.items() if k not in {"files", "root"}}
        return {
            "method": self.id,
            "paper": self.paper,
            "options": self.config.as_dict(),
            **facts,
            "backbone": backbone,
            "training": training,
        }

    # --- what a user calls -------------------------------------------------------------------
    # These four are doors to functions that stand above the methods, hence the late imports.

    def fit(
        self,
        data: Source,
        *,
        anomalous: Source | None = None,
        also_normal: Source | None = None,
        max_false_alarm: float = 0.01,
        roi: str | Path | None = None,
        window: str = "percentile",
        run: Run | None = None,
    ) -> Self:
        """Learn from the normal images of `data` and set the threshold; see `amiss.fit.fit`."""
        from amiss.fit import fit

        fit(
            self, data, anomalous=anomalous, also_normal=also_normal,
            max_false_alarm=max_false_alarm, roi=roi, window=window, run=run,
        )  # fmt: skip
        return self

    def predict(self, images: Any) -> ImageResult | list[ImageResult]:
        """Judge a path, a uint8 array, or a list of these; see `amiss.predict.predict`."""
        from amiss.predict import predict

        return predict(self, images)

    def save(self, path: str | Path) -> Path:
        """Write the one-file artifact; see `amiss.artifact.save`."""
        from amiss.artifact import save

        return save(self, path)

    # --- shared by all -----------------------------------------------------------------------

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) that images are brought to."""
        return self.config.image_size

    def blank(self) -> Self:
        """A detector with the same options that has learned nothing."""
        return type(self)(**vars(self.config))

    def take_over(self, other: Self) -> None:
        """Become what `other` is; until then, a failed fit leaves what was fitted before."""
        config = self.config
        self.__dict__.clear()  # a module set over None lives elsewhere, and None would hide it
        self.__dict__.update(other.__dict__)
        if self.config == config:
            self.config = config  # the very object that the user may hold

    def keep_roi(self, path: str | Path | None) -> None:
        """Keep the one mask of a fit, in the frame of the network, for every later image."""
        self.roi = None
        if path is not None:
            mask = read_mask(path)
            height, width = mask.shape
            geometry = fit_frame((height, width), self.image_size, self.config.resize_mode)
            self.roi = torch.from_numpy(resize_mask(mask, geometry).copy())

    def __repr__(self) -> str:
        """The options that are not at their defaults, and what it was fitted on."""
        plain = vars(self.config_type())
        options = [f"{k}={v!r}" for k, v in vars(self.config).items() if v != plain[k]]
        n = self.training_facts.get("n_normal")
        state = "not fitted" if not self.is_fitted else f"fitted on {n} images"
        return f"<{type(self).__name__}({', '.join(options)}), {state}>"

    def require_fitted(self) -> None:
        """Raise NotFittedError unless fitted."""
        if not self.is_fitted:
            raise NotFittedError(
                f"This {type(self).__name__} has not learned anything yet.",
                hint="Call fit(folder) first, or amiss.load(file).",
            )
