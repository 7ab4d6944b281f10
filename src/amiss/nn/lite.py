"""EfficientNet-Lite from its ImageNet weights file, straight to folded steps.

The embedded default backbone is built here rather than through timm, whose import takes longer than
fitting most folders and 230 MB. The maps equal timm's `tf_efficientnet_lite0`; a test holds that.

Tan and Le, "EfficientNet", ICML 2019, without squeeze-excitation and with ReLU6 (Lite).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from amiss.nn.folded import FoldedNetwork, Step

STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_EPS = 1e-3  # TensorFlow's batch norm
# Stages whose output timm offers as a feature map: the last one of each resolution.
FEATURES = {"blocks.0": 2, "blocks.1": 4, "blocks.2": 8, "blocks.4": 16, "blocks.6": 32}


def build_lite(
    state: Mapping[str, Tensor], layers: Sequence[str]
) -> tuple[FoldedNetwork, list[int]]:
    """The network up to the deepest of `layers` (names as in FEATURES), and the channels of each.

    `state` holds the file's own names: `_conv_stem`, `_bn0`, `_blocks.N...`.
    """
    builder = _Builder(state)
    builder.conv("_conv_stem", "_bn0", stride=2, active=True)
    outputs: dict[str, int] = {}
    number = 0
    for stage, depth in enumerate(stage_depths(state)):
        for i in range(depth):
            builder.inverted_residual(number, stride=STAGE_STRIDES[stage] if i == 0 else 1)
            number += 1
        outputs[f"blocks.{stage}"] = len(builder.steps)
        if f"blocks.{stage}" == layers[-1]:
            break
    wanted = [outputs[layer] for layer in layers]
    return FoldedNetwork(builder.steps, wanted, builder.tensors), builder.channels_of(wanted)


def stage_depths(state: Mapping[str, Tensor]) -> list[int]:
    """Blocks per stage; Lite0 is [1, 2, 2, 3, 3, 4, 1]. In this family a change of the output width
    opens a stage."""
    depths: list[int] = []
    width = number = 0
    while (key := f"_blocks.{number}._project_conv.weight") in state:
        if int(state[key].shape[0]) == width:
            depths[-1] += 1
        else:
            depths.append(1)
        width, number = int(state[key].shape[0]), number + 1
    return depths


class _Builder:
    """Appends one folded step per convolution."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state
        self.steps: list[Step] = []
        self.tensors: dict[str, Tensor] = {}

    def conv(self, name: str, norm: str, *, stride: int, active: bool) -> None:
        weight = self.state[f"{name}.weight"].double()
        scale = (self.state[f"{norm}.running_var"].double() + _EPS).rsqrt()
        scale = scale * self.state[f"{norm}.weight"].double()
        shift = self.state[f"{norm}.bias"].double()
        shift = shift - self.state[f"{norm}.running_mean"].double() * scale
        step: Step = {
            "op": "conv",
            "inputs": [len(self.steps)],
            "stride": [stride, stride],
            "padding": "same",
            "dilation": [1, 1],
            # A depthwise kernel sees one channel; the stem, which sees three, is no such thing.
            "groups": weight.shape[0] if weight.shape[1] == 1 else 1,
        }
        if active:
            step["activation"] = "relu6"
        self.steps.append(step)
        self.tensors[f"weight_{len(self.steps)}"] = (weight * scale[:, None, None, None]).float()
        self.tensors[f"bias_{len(self.steps)}"] = shift.float()

    def inverted_residual(self, number: int, *, stride: int) -> None:
        """Expand, filter each channel, project; the input is added where the shapes allow."""
        block = f"_blocks.{number}"
        source = len(self.steps)
        expanded = f"{block}._expand_conv.weight" in self.state
        if expanded:
            self.conv(f"{block}._expand_conv", f"{block}._bn0", stride=1, active=True)
        width_in = self.state[f"{block}._depthwise_conv.weight"].shape[0]
        if expanded:
            width_in = self.state[f"{block}._expand_conv.weight"].shape[1]
        self.conv(f"{block}._depthwise_conv", f"{block}._bn1", stride=stride, active=True)
        self.conv(f"{block}._project_conv", f"{block}._bn2", stride=1, active=False)
        width_out = self.state[f"{block}._project_conv.weight"].shape[0]
        if stride == 1 and width_in == width_out:
            self.steps.append({"op": "add", "inputs": [len(self.steps), source]})

    def channels_of(self, steps: Sequence[int]) -> list[int]:
        """Output channels of steps; an addition has those of the convolution before it."""
        return [
            len(self.tensors.get(f"bias_{n}", self.tensors.get(f"bias_{n - 1}", torch.empty(0))))
            for n in steps
        ]
