"""AnoGAN: the closest image that a generator of normal images can make, found by gradients.

Schlegl, Seeböck, Waldstein, Schmidt-Erfurth, Langs, "Unsupervised Anomaly Detection with Generative
Adversarial Networks to Guide Marker Discovery", IPMI 2017, arXiv 1703.05921.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amiss.learning.adversarial import Logarithmic, draw_codes, measured_diversity
from amiss.learning.held_out import HeldOut, judge_held_out
from amiss.learning.normals import Normals, to_tensors
from amiss.learning.trained import (
    GenerativeConfig,
    Pair,
    Split,
    drawn,
    in_color,
    job,
    restored,
    sampled,
    stored,
    taken,
)
from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.methods.base import Detector
from amiss.nn.gan import ConvEncoder, ConvGenerator, folded, halvings
from amiss.nn.latent_search import Search, search_codes
from amiss.nn.roi import inside
from amiss.options import Config, option
from amiss.run import Run
from amiss.types import Prediction, UInt8

_OF_SEARCH = (
    "feature_weight", "discrimination", "reduction", "search_steps", "search_rate", "restarts",
    "keep", "patience", "tolerance", "clamp_codes",
)  # fmt: skip
_AT_ONCE = 64 * 64 * 64 * 64  # images x pixels x width
_OBSTACLE = (
    "the closest image is searched by running the networks backwards, hundreds of times for each "
    "image, and an exported graph runs forwards only"
)


@dataclass(frozen=True, kw_only=True)
class AnoGANConfig(GenerativeConfig):
    """Options of AnoGAN."""

    image_size: tuple[int, int] = option(
        (64, 64), "height and width of the networks' input, in pixels", low=16, high=256
    )
    epochs: int = option(
        20, "passes over the training images, each of whole batches", low=1, high=100_000
    )
    learning_rate: float = option(2e-4, "of Adam, of the generator's training", low=1e-7, high=1)
    beta1: float = option(0.5, "of it", low=0, high=0.9999)
    feature_weight: float = option(
        0.1, "lambda: the share of the features in the loss", low=0, high=1, paper="0.1"
    )
    discrimination: str = option(
        "features",
        "the second term: features of the discriminator, or logits, how little it takes the made "
        "image for a real one",
        choices=("features", "logits"),
        paper="features",
    )
    reduction: str = option(
        "sum", "of pixels and of features: their sum, or their mean, which changes what "
        "feature_weight means", choices=("sum", "mean"), paper="sum",
    )  # fmt: skip
    search_steps: int = option(
        500, "Gamma: steps of the search for an image", low=1, high=100_000, paper="500"
    )
    search_rate: float = option(
        0.01, "of the search's Adam: a tenth of it after two fifths of the steps, a twentieth "
        "after three", low=1e-6, high=10,
    )  # fmt: skip
    restarts: int = option(1, "searches from other codes; the best counts", low=1, high=100)
    keep: str = option(
        "last", "which code of a search counts: the last, or the best", choices=("last", "best"),
        paper="last",
    )  # fmt: skip
    patience: int = option(
        0, "an image stops that has not come closer in so many steps; 0: none does", low=0,
        high=100_000, paper="0",
    )  # fmt: skip
    tolerance: float = option(0.01, "the share of its loss that is closer", low=0, high=1)
    clamp_codes: bool = option(False, "keep codes of a uniform prior in [-1, 1]")

    def __post_init__(self) -> None:
        super().__post_init__()
        halvings(self.image_size)
        if self.patience == 0:
            self.refuse_unused(("tolerance",), "patience is 0, so no image stops")
        if self.latent != "uniform":
            self.refuse_unused(("clamp_codes",), "the prior of the codes has no bound")


class _Closest(NamedTuple):
    """Of images (B, ...): the loss (B,) at the code found, and the image (B, C, H, W) it makes."""

    loss: Tensor
    image: Tensor


class AnoGAN(Detector):
    """AnoGAN: A(x) = (1 - lambda) sum|x - G(z)| + lambda sum|f(x) - f(G(z))| at the code z found.

    Options as in `AnoGANConfig`, same names and defaults.
    """

    id: ClassVar[str] = "anogan"
    paper: ClassVar[str] = "Schlegl et al., IPMI 2017, arXiv 1703.05921"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = _OBSTACLE
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    together: ClassVar[int] = 64
    config_type: ClassVar[type[Config]] = AnoGANConfig
    config: AnoGANConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = AnoGANConfig.image_size,
        resize: str = AnoGANConfig.resize,
        colors: str = AnoGANConfig.colors,
        latent_dim: int = AnoGANConfig.latent_dim,
        latent: str = AnoGANConfig.latent,
        width: int = AnoGANConfig.width,
        epochs: int = AnoGANConfig.epochs,
        batch_size: int = AnoGANConfig.batch_size,
        learning_rate: float = AnoGANConfig.learning_rate,
        beta1: float = AnoGANConfig.beta1,
        feature_weight: float = AnoGANConfig.feature_weight,
        discrimination: str = AnoGANConfig.discrimination,
        reduction: str = AnoGANConfig.reduction,
        search_steps: int = AnoGANConfig.search_steps,
        search_rate: float = AnoGANConfig.search_rate,
        restarts: int = AnoGANConfig.restarts,
        keep: str = AnoGANConfig.keep,
        patience: int = AnoGANConfig.patience,
        tolerance: float = AnoGANConfig.tolerance,
        clamp_codes: bool = AnoGANConfig.clamp_codes,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(AnoGANConfig(**options))
        self.networks: Any = None  # once there are some
        self.facts: dict[str, Any] = {}
        # Of which networks, where and in which precision; and those that a search runs.
        self._searched: tuple[Any, tuple[nn.Module, nn.Module, nn.Module]] | None = None

    # --- learning --------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        split = Split.draw(images, run)
        self._searched = None
        self.networks = drawn(self._untrained, run.seed)
        self.facts = {"images": len(split.data), **self._train(split.data, run)}
        self.networks.requires_grad_(False)
        self.eval()
        return self._calibration(split, run)

    def _untrained(self) -> Pair:
        cfg = self.config
        shape: dict[str, Any] = {"channels": cfg.channels, "width": cfg.width}
        generator = ConvGenerator(cfg.image_size, cfg.latent_dim, **shape)
        return Pair(cfg.maker(generator), ConvEncoder(cfg.image_size, 1, **shape))

    def _train(self, data: TrainingImages, run: Run) -> dict[str, Any]:
        cfg, networks = self.config, self.networks
        rules = Logarithmic(cfg.learning_rate, (cfg.beta1, 0.999))
        history = rules.train(
            cfg.duel(networks, data),
            run,
            job(cfg, run, without=_OF_SEARCH),
        )
        spread = measured_diversity(networks.maker, data, cfg.prepared, run)
        return {**history.facts(), "sample_diversity": spread}

    def _calibration(self, split: Split, run: Run) -> HeldOut:
        """As `Split.judged_by`, as many images at once as are judged together."""
        found: dict[int, tuple[Prediction[Tensor], Tensor | None]] = {}
        for batch in split.images.only(split.apart, self.together):
            x, rois = to_tensors(batch.images, batch.rois)
            with torch.inference_mode():
                judged = self(x, rois)
            assert judged.anomaly_map is not None
            for i, number in enumerate(batch.indices.tolist()):
                one = Prediction(judged.score[i : i + 1], judged.anomaly_map[i : i + 1])
                found[number] = one, None if rois is None else rois[i : i + 1]
            run.progress("search", len(found), len(split.apart))
        return judge_held_out(found.__getitem__, split.apart, run, split.told())

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        x = self.config.prepared(ImageBatch(images, roi))
        return self._judged(x, roi)

    def _judged(self, x: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        found = self._closest(x, roi)
        return Prediction(found.loss, (x - inside(found.image, roi)).abs().mean(1))

    def reconstruct(self, images: Tensor, roi: Tensor | None = None) -> Tensor | None:
        self.require_fitted()
        found = self._closest(self.config.prepared(ImageBatch(images, roi)), roi)
        return in_color(found.image)

    def _closest(self, x: Tensor, roi: Tensor | None) -> _Closest:
        """The images that the generator comes closest to x with: a search, then its last step."""
        # As many at once as take the memory of 64 images of 64 x 64 px at the paper's width.
        H, W = self.image_size
        size = max(1, min(self.together, _AT_ONCE // (H * W * self.config.width)))
        rois = [None] * len(x) if roi is None else roi.split(size)
        with torch.inference_mode(mode=False), torch.no_grad():
            # Clones are of no inference, which autograd would not take.
            found = [
                self._closest_of(part.clone(), None if mask is None else mask.clone())
                for part, mask in zip(x.split(size), rois, strict=False)
            ]
        return _Closest(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _closest_of(self, x: Tensor, rois: Tensor | None) -> _Closest:
        """`_closest` of images that are searched together."""
        cfg = self.config
        wanted = self._features(x)

        def loss_of(codes: Tensor, numbers: Tensor) -> Tensor:
            mask = None if rois is None else rois[numbers]
            return self._loss(codes, x[numbers], mask, wanted[numbers])[0]

        best: _Closest | None = None
        for seed in range(cfg.restarts):
            # All images start from the same code: a score is of its image alone.
            start = draw_codes(1, cfg.latent_dim, cfg.latent, like=x, seed=seed)
            codes = search_codes(loss_of, start.expand(len(x), -1), self._search())
            found = _Closest(*self._loss(codes, x, rois, wanted))
            if best is not None:
                closer = found.loss < best.loss
                image = torch.where(closer[:, None, None, None], found.image, best.image)
                found = _Closest(torch.minimum(found.loss, best.loss), image)
            best = found
        assert best is not None
        return best

    def _search(self) -> Search:
        cfg = self.config
        return Search(
            cfg.search_steps, cfg.search_rate, patience=cfg.patience, tolerance=cfg.tolerance,
            bound=1.0 if cfg.clamp_codes else None, keep_best=cfg.keep == "best",
        )  # fmt: skip

    def _loss(
        self, codes: Tensor, x: Tensor, roi: Tensor | None, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """L(z) = (1 - lambda) R(z) + lambda D(z) of codes (B, d), and G(z)."""
        cfg = self.config
        make, _, head = self._frozen()
        made = make(codes[:, :, None, None])
        seen = inside(made, roi)
        residual = (x - seen).abs().flatten(1)
        features = self._features(seen)
        if cfg.discrimination == "logits":
            apart = F.softplus(-head(features))
        else:
            apart = (wanted - features).abs()
        of = torch.sum if cfg.reduction == "sum" else torch.mean
        weight = cfg.feature_weight
        loss = (1 - weight) * of(residual, 1) + weight * of(apart.flatten(1), 1)
        return loss, made

    def _features(self, x: Tensor) -> Tensor:
        """f(x): what the discriminator's last layer takes in."""
        found: Tensor = self._frozen()[1](x)
        return found

    def _frozen(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Generator, body and head of the discriminator as a search runs them: without batch norms
        of their own."""
        networks = self.networks
        weight: Tensor = networks.critic.head.weight
        of = (id(networks), weight.device, weight.dtype)
        if self._searched is None or self._searched[0] != of:
            body = folded(networks.critic.body)
            # Not as modules of the detector: they are these networks once more.
            made = folded(networks.maker.generator.body), body, networks.critic.head
            object.__setattr__(self, "_searched", (of, made))
        assert self._searched is not None
        return self._searched[1]

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> UInt8:
        self.require_fitted()
        return sampled(self.networks.maker, n, seed, start)

    def pictures(self) -> list[tuple[int, UInt8]]:
        self.require_fitted()
        return taken(self.networks.maker)

    def summary(self) -> str:
        height, width = self.image_size
        return (
            f"generator of {height} x {width} px from codes of {self.config.latent_dim} values, "
            f"from {self.facts['images']} images; {self.config.search_steps} steps to judge one"
        )

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.networks is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return stored(self.networks, self.facts)

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.networks, self.facts = restored(self._untrained, facts, tensors)
        self._searched = None
