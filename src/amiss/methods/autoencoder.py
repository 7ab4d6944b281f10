"""Autoencoder: what cannot be made again from a code of the normal images is amiss.

The plain baseline of methods that reconstruct; as the ablation of Hou et al., ICCV 2021, has it,
and with the loss of Bergmann et al., "Improving Unsupervised Defect Segmentation by Applying
Structural Similarity to Autoencoders", VISAPP 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from amiss.learning.held_out import HeldOut
from amiss.learning.normals import Normals
from amiss.learning.reconstruction import (
    ReconstructionConfig,
    error_map,
    mean_inside,
    train_reconstructor,
)
from amiss.learning.trained import Split, drawn, in_color, job, one_by_one, restored, stored
from amiss.learning.training_images import ImageBatch
from amiss.methods.base import Detector
from amiss.nn.autoencoder import Decoder, Encoder, scales
from amiss.nn.roi import inside
from amiss.nn.ssim import ssim_map
from amiss.options import Config, option
from amiss.run import Run
from amiss.types import Prediction


@dataclass(frozen=True, kw_only=True)
class AutoEncoderConfig(ReconstructionConfig):
    """Options of the autoencoder."""

    image_size: tuple[int, int] = option(
        (128, 128), "height and width of the networks' input, in pixels", low=16, high=256
    )
    scales: int = option(4, "how often an image is halved", low=1, high=7)
    skip: bool = option(
        False, "connections past the code, from every scale of the encoder to the decoder's, as a "
        "U-Net has them",
    )  # fmt: skip
    loss: str = option(
        "mse", "mse: squared differences; ssim: (1 - SSIM) / 2, in windows of 11 x 11",
        choices=("mse", "ssim"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        scales(self.image_size, self.width, self.scales)


class _Network(nn.Module):
    """x (B, C, H, W) in [-1, 1] -> what is made of it."""

    def __init__(self, config: AutoEncoderConfig) -> None:
        super().__init__()
        shapes = scales(config.image_size, config.width, config.scales)
        self.encoder = Encoder(config.channels, shapes)
        self.decoder = Decoder(config.channels, shapes, skip=config.skip)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.decoder(self.encoder(x))
        return made


class AutoEncoder(Detector):
    """Autoencoder: A(x) = mean (x - G(E(x)))^2, or the mean of (1 - SSIM) / 2.

    Options as in `AutoEncoderConfig`, same names and defaults.
    """

    id: ClassVar[str] = "autoencoder"
    paper: ClassVar[str] = "baseline, as in Hou et al., ICCV 2021, arXiv 2107.13118"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = AutoEncoderConfig
    config: AutoEncoderConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = AutoEncoderConfig.image_size,
        resize: str = AutoEncoderConfig.resize,
        colors: str = AutoEncoderConfig.colors,
        width: int = AutoEncoderConfig.width,
        epochs: int = AutoEncoderConfig.epochs,
        batch_size: int = AutoEncoderConfig.batch_size,
        learning_rate: float = AutoEncoderConfig.learning_rate,
        flips: str = AutoEncoderConfig.flips,
        scales: int = AutoEncoderConfig.scales,
        skip: bool = AutoEncoderConfig.skip,
        loss: str = AutoEncoderConfig.loss,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(AutoEncoderConfig(**options))
        self.networks: Any = None  # once there are some
        self.facts: dict[str, Any] = {}

    # --- learning --------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        split = Split.draw(images, run)
        self.networks = drawn(self._untrained, run.seed)
        history = train_reconstructor(
            self.networks, self._losses, self.config, split.data, run, job(self.config, run)
        )
        self.facts = {"images": len(split.data), **history.facts()}
        self.networks.requires_grad_(False)
        self.eval()
        return split.judged_by(self.forward, run)

    def _untrained(self) -> _Network:
        return _Network(self.config)

    def _losses(self, network: nn.Module, x: Tensor, rois: Tensor | None) -> dict[str, Tensor]:
        return {"loss": mean_inside(self._errors(x, network(x), rois), rois).mean()}

    def _errors(self, x: Tensor, made: Tensor, roi: Tensor | None) -> Tensor:
        """(B, H, W), 0 where x is made again as it is."""
        if self.config.loss == "ssim":
            found = (1 - ssim_map(x, inside(made, roi))) / 2
            return found if roi is None else found * roi
        return error_map(x, made, roi)

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        return one_by_one(self._judged, self.config, images, roi)

    def _judged(self, x: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        errors = self._errors(x, self.networks(x), roi)
        return Prediction(mean_inside(errors, roi), errors)

    def reconstruct(self, images: Tensor, roi: Tensor | None = None) -> Tensor | None:
        self.require_fitted()
        return in_color(self.networks(self.config.prepared(ImageBatch(images, roi))))

    def summary(self) -> str:
        height, width = self.image_size
        kind = "U-Net" if self.config.skip else "autoencoder"
        return f"{kind} of {height} x {width} px, from {self.facts['images']} images"

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.networks is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return stored(self.networks, self.facts)

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.networks, self.facts = restored(self._untrained, facts, tensors)
