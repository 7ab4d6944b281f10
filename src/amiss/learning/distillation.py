"""How a network that describes patches is taught by a large one that was trained on many images.

Bergmann, Fauser, Sattlegger, Steger, "Uninformed Students", CVPR 2020, section 3.1: knowledge
distillation, metric learning by triplets, and compactness of the descriptors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from amiss.data.pictures import Pictures, bundled_pictures, pictures_in
from amiss.errors import DataError, OptionError, WeightsError
from amiss.learning.normals import Normals
from amiss.learning.training_images import room_bytes
from amiss.nn.backbone import FeatureExtractor
from amiss.nn.levels import as_input
from amiss.nn.losses import compactness_loss, distillation_loss, triplet_loss
from amiss.nn.patch_network import PatchNetwork
from amiss.run import Run
from amiss.training import Loop, Losses, Player, train
from amiss.types import Int64, Record

_SOURCE_PX = 64  # the side that the source network sees a patch at; our choice
_GRID_PX = 8  # between two patches of one crop
_EPOCH = 100  # steps that losses are averaged over
_NOISE = 0.1  # standard deviation added to the positive, of levels in [0, 1]
_PICTURES_BYTES = 1 << 29  # of decoded pictures, at most
_GRAY = 0.1  # share of crops that lose their colour


@dataclass(frozen=True)
class Lessons:
    """How teachers are made.

    `steps` of `batch_size` patches each, a multiple of `grid` squared; the weights of the three
    losses; `grid`: patches along each side of a crop, 8 pixels apart (1: every patch from a crop of
    its own); the part of a picture that becomes a crop has between `crop_low` and `crop_high`
    times its side.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    distill_weight: float
    triplet_weight: float
    compactness_weight: float
    margin: float
    grid: int
    crop_low: float
    crop_high: float

    def __post_init__(self) -> None:
        patches = self.grid**2
        least = 2 * patches if self.triplet_weight > 0 else patches
        if self.batch_size % patches or self.batch_size < least:
            reason = ", two crops for the triplets" if self.triplet_weight > 0 else ""
            raise OptionError(
                f"teacher_batch={self.batch_size} does not consist of crops of {patches} "
                f"patches{reason}.",
                hint=f"Use a multiple of {patches}, {least} or more.",
            )


def pictures_for(source: str, images: Normals, learned: Int64, run: Run) -> tuple[Pictures, str]:
    """What teachers are taught on, and that in words: the pictures of a folder, but those that hold
    the same as an image not `learned`; or with "auto" the learned images and scikit-image's."""
    records = images.stream.records
    own = [records[i] for i in learned]
    if source == "auto":
        bundled = bundled_pictures()
        said = f"{len(own)} training images and {len(bundled)} pictures of scikit-image"
        found = own + bundled
    else:
        apart = np.setdiff1d(np.arange(len(images)), learned)
        found = pictures_in(Path(source), without=[records[i] for i in apart])
        said = f"{len(found)} pictures of {Path(source).name}"
    room = int(min(_PICTURES_BYTES, room_bytes(run)))
    return Pictures(found, images.stream.window, room), said


class Apprentice(nn.Module):
    """A patch network with the decoder that it is taught through, which is then thrown away."""

    def __init__(self, network: PatchNetwork, source_dim: int) -> None:
        super().__init__()
        self.network = network
        self.decode = nn.Linear(network.dim, source_dim)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, s, s) in [-1, 1] -> descriptors (N, D) of all patches 8 pixels apart, row by row,
        and those decoded (N, C)."""
        maps = self.network.inner(crops, _GRID_PX)
        descriptors = maps.permute(0, 2, 3, 1).flatten(0, 2)
        return descriptors, self.decode(descriptors)


class _Crops:
    """What a training goes over: crops of pictures, (b, 3, s, s) uint8 for each patch size."""

    def __init__(self, pictures: Pictures, sizes: Sequence[int], lessons: Lessons, n: int) -> None:
        self.pictures, self.sizes, self.lessons, self.n = pictures, list(sizes), lessons, n

    def __len__(self) -> int:
        return self.n

    @property
    def records(self) -> Sequence[Record]:
        return self.pictures.records

    def reading(self) -> dict[str, str]:
        return {"window": str(self.pictures.window)}

    def at(self, places: Int64) -> tuple[Tensor, ...]:
        # Which crops a step sees is drawn, whatever its places are called.
        dice = torch.rand(len(self.sizes), len(places), 3).tolist()
        pictures = [_unlike(len(places), len(self.records)) for _ in self.sizes]
        found = []
        for number, p in enumerate(self.sizes):
            side = crop_side(p, self.lessons)
            scale = side / p
            low = round(self.lessons.crop_low * p * scale)
            high = round(self.lessons.crop_high * p * scale)
            crops = [
                self.pictures.crop(picture, side, low, high, thrown)
                for picture, thrown in zip(pictures[number], dice[number], strict=True)
            ]
            found.append(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2))
        return tuple(found)


def _unlike(count: int, n: int) -> list[int]:
    """`count` of n pictures at random, all as likely, none the same as the one before it."""
    steps = torch.randint(1, max(2, n), (count,))
    steps[0] = torch.randint(n, ())
    return [int(place) % n for place in steps.cumsum(0)]


def crop_side(patch_size: int, lessons: Lessons) -> int:
    """The side of a crop: its patches, and the margin that a positive may be shifted by."""
    shift = _shift(patch_size) if lessons.triplet_weight > 0 else 0
    return patch_size + _GRID_PX * (lessons.grid - 1) + 2 * shift


def _shift(patch_size: int) -> int:
    return (patch_size - 1) // 4


def teach(
    networks: Sequence[PatchNetwork],
    source: FeatureExtractor,
    pictures: Pictures,
    lessons: Lessons,
    run: Run,
    job: dict[str, Any],
) -> dict[str, Any]:
    """Distil `source` into each of `networks`; the facts of the training."""
    source_dim = source.channels[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        apprentices = {f"teacher_{n.patch_size}": Apprentice(n, source_dim) for n in networks}
    players = {
        name: Player(
            one,
            torch.optim.Adam(
                one.parameters(), lr=lessons.learning_rate, weight_decay=lessons.weight_decay
            ),
        )
        for name, one in apprentices.items()
    }
    crops_per_step = lessons.batch_size // lessons.grid**2
    # An epoch only says over how many steps losses are averaged; epochs fill the steps exactly.
    steps = max(k for k in range(1, _EPOCH + 1) if lessons.steps % k == 0)
    data = _Crops(pictures, [n.patch_size for n in networks], lessons, crops_per_step * steps)
    if lessons.triplet_weight > 0 and len(pictures.records) < 2:
        raise DataError(
            "A triplet needs a patch of another picture, and there is one picture only.",
            hint="Give more pictures to teach on, or leave out the triplets' weight.",
        )

    def step(loop: Loop, crops: tuple[Tensor, ...]) -> Losses:
        source.to(loop.fabric.device)
        reported: dict[str, Tensor] = {}
        for (name, one), x in zip(apprentices.items(), crops, strict=True):
            losses = _losses(loop.networks[name], source, x, one.network.patch_size, lessons)
            loop.backward(losses["loss"])
            loop.update(name)
            reported |= {f"{name} {key}": value.detach() for key, value in losses.items()}
        return reported

    history = train(
        players, data, step, epochs=lessons.steps // steps,
        batch_size=crops_per_step, run=run, job=job, stage="teachers",
    )  # fmt: skip
    source.cpu()
    last = {name: round(value, 4) for name, value in history.last().items()}
    return {"steps": history.steps, "losses": last, "seconds": history.seconds}


def _losses(
    apprentice: nn.Module, source: FeatureExtractor, crops: Tensor, patch: int, lessons: Lessons
) -> dict[str, Tensor]:
    """`crops` (b, 3, s, s) uint8 -> the three losses and their weighted sum."""
    shift = _shift(patch) if lessons.triplet_weight > 0 else 0
    size = crops.shape[2] - 2 * shift
    crops = _some_gray(crops)
    anchors = crops[:, :, shift : shift + size, shift : shift + size]
    descriptors, decoded = apprentice(as_input(anchors))
    wanted = source_descriptors(source, patches_of(anchors, patch))
    losses = {
        "distillation": distillation_loss(decoded, wanted),
        "compactness": compactness_loss(descriptors.float()),
    }
    loss = lessons.distill_weight * losses["distillation"]
    loss = loss + lessons.compactness_weight * losses["compactness"]
    if lessons.triplet_weight > 0:
        shifts = torch.randint(0, 2 * shift + 1, (len(crops), 2)).tolist()
        moved = [
            crop[:, down : down + size, right : right + size]
            for crop, (down, right) in zip(crops, shifts, strict=True)
        ]
        near = as_input(torch.stack(moved))
        positive, _ = apprentice(near + 2 * _NOISE * torch.randn_like(near))
        # The crop before is of another picture; before the first, so is the second.
        by_crop = descriptors.unflatten(0, (len(crops), -1))
        negative = torch.cat([by_crop[1:2], by_crop[:-1]]).flatten(0, 1)
        losses["triplet"] = triplet_loss(descriptors, positive, negative, lessons.margin)
        loss = loss + lessons.triplet_weight * losses["triplet"]
    return {"loss": loss, **losses}


def _some_gray(crops: Tensor) -> Tensor:
    gray = crops.float().mean(1, keepdim=True).to(torch.uint8).expand_as(crops)
    is_gray = torch.rand(len(crops), 1, 1, 1, device=crops.device) < _GRAY
    return torch.where(is_gray, gray, crops)


def patches_of(crops: Tensor, patch: int) -> Tensor:
    """(b, 3, s, s) -> (N, 3, p, p), all patches 8 pixels apart, row by row."""
    windows = crops.unfold(2, patch, _GRID_PX).unfold(3, patch, _GRID_PX)  # (b, 3, g, g, p, p)
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


@torch.no_grad()
def source_descriptors(source: FeatureExtractor, patches: Tensor) -> Tensor:
    """P(p): the deepest features of each patch (N, 3, p, p) uint8, averaged over it: (N, C)."""
    shown = F.interpolate(patches.float(), size=(_SOURCE_PX, _SOURCE_PX), mode="bilinear")
    return source.at_once(shown)[-1].float().mean((2, 3))


def teachers_in(path: Path, networks: Sequence[PatchNetwork]) -> dict[str, Any]:
    """Fill `networks` from a saved Uninformed Students of the same patch sizes and width; what its
    manifest says of its teachers.

    Raises:
        WeightsError: no such file, or one of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            manifest = json.loads((file.metadata() or {}).get("amiss", "{}"))
            tensors = {
                name.removeprefix("ensemble.teachers."): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - no mapping
                if name.startswith("ensemble.teachers.")
            }
        if manifest.get("method") != "uninformed_students":
            raise ValueError(f"it is of the method {manifest.get('method')}")
        sizes = manifest["config"]["patch_sizes"]
        facts = dict(manifest["facts"]["students"]["teacher"])
        if sizes != [network.patch_size for network in networks]:
            raise ValueError(f"its patch sizes are {', '.join(map(str, sizes))}")
        nn.ModuleList(networks).load_state_dict(tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(
            f"teacher={str(path)!r} holds no teachers of these patch sizes and width: "
            f"{str(error).splitlines()[0]}.",
            hint="Give an .amiss file of uninformed_students with the same patch_sizes and width, "
            "or teacher=distill.",
        ) from error
    return facts | {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
