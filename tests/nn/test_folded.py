"""A folded network computes what the network computes, with fewer steps."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from torch import Tensor, nn

from amiss.nn.folded import CannotFoldError, FoldedNetwork, fold


def network(name: str, indices: tuple[int, ...]) -> nn.Module:
    """A small network with batch statistics that are not the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(
            name, features_only=True, pretrained=False, out_indices=indices
        ).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.2)
    return model


def image(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_equal_maps(model: nn.Module, folded: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        expected, found = model(x), folded(x)
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        largest = float(one.abs().max())
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, largest))


@pytest.mark.parametrize(
    ("name", "indices"),
    [
        ("test_efficientnet", (1, 2, 3)),  # squeeze-excite
        ("tf_efficientnet_lite0", (1, 2)),  # TensorFlow's padding
        ("mobilenetv3_small_050", (1, 2)),  # hard activations, squeeze-excite
        ("resnet18", (1, 2)),
    ],
)
@pytest.mark.parametrize("size", [(64, 96), (49, 75)])
def test_the_maps_are_the_same(name: str, indices: tuple[int, ...], size: tuple[int, int]) -> None:
    model = network(name, indices)
    assert_equal_maps(model, fold(model), image(*size, batch=2))


@pytest.mark.parametrize("size", [(32, 32), (33, 31), (38, 57), (17, 64)])
def test_tensorflow_padding_is_right_at_odd_sizes(size: tuple[int, int]) -> None:
    model = network("tf_efficientnet_lite0", (0, 3))
    assert_equal_maps(model, fold(model), image(*size))


def test_no_batch_norm_is_left_and_deeper_stages_are_dropped() -> None:
    shallow, deep = fold(network("resnet18", (1,))), fold(network("resnet18", (1, 4)))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deep.modules())
    assert len(shallow.steps) < len(deep.steps) / 2
    assert len(shallow.state_dict()) < len(deep.state_dict()) / 2


def test_a_folded_network_comes_back_from_json_and_tensors() -> None:
    folded = fold(network("test_efficientnet", (1, 2)))
    steps, outputs = json.loads(json.dumps([folded.steps, folded.outputs]))
    again = FoldedNetwork(steps, outputs, folded.state_dict())
    x = image(40, 56)
    with torch.inference_mode():
        for one, other in zip(folded(x), again(x), strict=True):
            assert torch.equal(one, other)


def test_the_input_is_left_alone() -> None:
    x = image(32, 32)
    before = x.clone()
    with torch.inference_mode():
        fold(network("resnet18", (1,)))(x)
    assert torch.equal(x, before)


class Listed(nn.Module):
    """A network whose forward returns a list, as the zoo's do."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.layers(x)]


class Twice(nn.Module):
    """The value before an activation is needed after it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.conv(x)
        return [self.act(y) + y, y]


def test_a_value_that_is_used_twice_is_not_overwritten() -> None:
    model = Twice().eval()
    assert_equal_maps(model, fold(model), image(9, 11))


class TwoBranches(nn.Module):
    """Batch norm of a convolution whose own output is also used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.conv(x)
        return [self.norm(y), y]


def test_a_convolution_whose_output_is_used_bare_is_not_folded_away() -> None:
    model = TwoBranches().eval()
    model.norm.running_mean.fill_(3.0)
    try:
        folded = fold(model)
    except CannotFoldError:
        return
    assert_equal_maps(model, folded, image(9, 11))


@pytest.mark.parametrize(
    "layer",
    [
        nn.GELU(),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.MaxPool2d(3, ceil_mode=True),
        nn.ConvTranspose2d(3, 4, 3),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
)
def test_what_has_no_step_is_said(layer: nn.Module) -> None:
    with pytest.raises(CannotFoldError, match=r"\w"):
        fold(Listed(layer).eval())


def test_a_batch_norm_without_weights_is_folded() -> None:
    norm = nn.BatchNorm2d(4, affine=False)
    norm.running_mean.fill_(0.5)
    norm.running_var.fill_(4.0)
    model = Listed(nn.Conv2d(3, 4, 1, bias=False), norm, nn.SiLU()).eval()
    assert_equal_maps(model, fold(model), image(8, 9))
