"""Flows: inverse, exact log-determinants, codes of places, what is computed once for all images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from amiss.nn.flow import ConditionalFlow, position_code, random_rotation


def flow(channels: int, *, condition: int = 16, blocks: int = 8) -> ConditionalFlow:
    """In float64, with scales and shifts that are no longer those of the beginning."""
    torch.manual_seed(channels)
    made = ConditionalFlow(channels, blocks=blocks, condition=condition).double()
    for block in made.blocks:
        torch.nn.init.normal_(block.scale_logit, 10.0, 2.0)
        torch.nn.init.normal_(block.shift)
        torch.nn.init.normal_(block.second.weight, std=0.2)
    return made.requires_grad_(False)


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("channels", "condition"), [(12, 16), (7, 8), (40, 128)])
def test_the_inverse_undoes_a_flow(channels: int, condition: int) -> None:
    """Section 7, check 1; rotations are float32, so a double is not kept to its last digit."""
    made = flow(channels, condition=condition)
    terms = made.place_terms(vectors(5, condition))
    x = vectors(3, 5, channels)
    z, _ = made.transform(x, terms)
    assert float((z - x).abs().max()) > 0.1
    torch.testing.assert_close(made.inverse(z, terms), x, atol=1e-5 * float(z.abs().max()), rtol=0)


@pytest.mark.parametrize(("channels", "condition"), [(12, 16), (7, 8), (40, 128)])
def test_the_log_determinant_is_that_of_the_jacobian(channels: int, condition: int) -> None:
    """Section 7, check 2, of several images and places."""
    made = flow(channels, condition=condition)
    terms = made.place_terms(vectors(2, condition))
    x = vectors(2, 2, channels)
    _, found = made.transform(x, terms)
    for image in range(2):
        for place in range(2):
            own = [term[place : place + 1] for term in terms]

            def alone(v: Tensor, own: list[Tensor] = own) -> Tensor:
                return made.transform(v.view(1, 1, -1), own)[0].flatten()

            jacobian = torch.autograd.functional.jacobian(alone, x[image, place])
            sign, expected = torch.linalg.slogdet(jacobian)
            assert float(sign) == 1.0  # rotations do not mirror, scales are positive
            torch.testing.assert_close(found[image, place], expected, atol=1e-6, rtol=0)


def test_an_untrained_flow_of_nothing_subtracted_is_a_normal_density_at_its_middle() -> None:
    """Section 7, check 3: -ln(2 pi) / 2 per channel, where z is 0 and no scale is learned."""
    made = ConditionalFlow(12, blocks=8, condition=16).double().requires_grad_(False)
    for block in made.blocks:
        torch.nn.init.zeros_(block.second.weight)
        torch.nn.init.zeros_(block.second.bias)
    x = torch.zeros(1, 3, 12, dtype=torch.float64)
    found = made(x, vectors(3, 16))
    torch.testing.assert_close(found, torch.full_like(found, -0.918939), atol=1e-6, rtol=0)
    assert float(-torch.nn.functional.logsigmoid(found[0, 0])) == pytest.approx(1.254655, abs=1e-6)


def test_the_density_integrates_to_one() -> None:
    """Of two channels, over a fine grid: the likelihood is one, whatever was learned."""
    made = flow(2, condition=4, blocks=3)
    side = torch.linspace(-14, 14, 701, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).view(1, -1, 2)
    code = vectors(1, 4).expand(x.shape[1], 4)
    density = (2 * made(x, code)).exp()
    assert float(density.sum()) * float(side[1] - side[0]) ** 2 == pytest.approx(1, abs=0.02)


def test_a_block_scales_no_channel_by_more_than_its_clamp() -> None:
    made = flow(8, blocks=1)
    (block,) = made.blocks
    torch.nn.init.normal_(block.second.weight, std=100.0)
    terms = made.place_terms(vectors(4, 16))
    _, log_det = made.transform(100 * vectors(2, 4, 8), terms)
    learned = float((0.1 * torch.nn.functional.softplus(block.scale_logit, beta=0.5)).log().sum())
    assert float((log_det - learned).abs().max()) <= 4 * 1.9 + 1e-9
    assert float((log_det - learned).abs().max()) > 1.9


def test_codes_tell_columns_and_rows_apart() -> None:
    """Section 7, check 4: half of the channels each, sines then cosines, sines 0 at the first."""
    code = position_code((5, 7), 128).view(5, 7, 128)
    assert (code[:, 0, 0] == 0).all() and (code[:, 0, 1] == 1).all()
    torch.testing.assert_close(code[:, :, :64], code[:1, :, :64].expand(5, 7, 64))
    torch.testing.assert_close(code[:, :, 64:], code[:, :1, 64:].expand(5, 7, 64))
    k = 3
    angle = 4 * 10_000 ** (-2 * k / 64)
    torch.testing.assert_close(code[0, 4, 2 * k], torch.tensor(math.sin(angle)))
    torch.testing.assert_close(code[4, 0, 64 + 2 * k + 1], torch.tensor(math.cos(angle)))
    assert len(torch.unique(code.view(35, 128), dim=0)) == 35
    with pytest.raises(ValueError, match="cut into four"):
        position_code((2, 2), 6)


def test_vectors_may_be_shuffled_with_their_codes() -> None:
    """Section 7, check 4."""
    made, code = flow(12), vectors(6, 16)
    x = vectors(2, 6, 12)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(made(x[:, order], code[order]), made(x, code)[:, order])
    alone = made(x[1:, 2:3], code[2:3])
    torch.testing.assert_close(alone, made(x, code)[1:, 2:3])
    assert not torch.allclose(made(x, code.flip(0)), made(x, code), atol=1e-3)


def test_rotations_are_of_determinant_one_and_drawn_evenly() -> None:
    torch.manual_seed(0)
    found = torch.stack([random_rotation(5) for _ in range(400)]).double()
    torch.testing.assert_close(found @ found.mT, torch.eye(5).double().expand(400, 5, 5))
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(400).double())
    # QR's choice of signs would make the first entries all of one sign.
    assert float(found[:, 0, 0].mean().abs()) < 4 * (1 / 5 / 400) ** 0.5


def test_the_paper_s_flows_have_their_number_of_weights() -> None:
    """Section 8: tf_efficientnet_b6 has 40, 72 and 200 channels; 2.64 M weights that learn."""
    flows = [ConditionalFlow(channels) for channels in (40, 72, 200)]
    assert sum(w.numel() for made in flows for w in made.parameters()) == 2_641_920


def test_the_paper_s_network_has_the_channels_that_the_flows_are_for() -> None:
    import timm

    network = timm.create_model(
        "tf_efficientnet_b6", features_only=True, pretrained=False, out_indices=(1, 2, 3)
    )
    assert network.feature_info.channels() == [40, 72, 200]
    assert network.feature_info.reduction() == [4, 8, 16]


def test_sums_are_taken_in_single_precision_at_least() -> None:
    made = ConditionalFlow(24, condition=16).requires_grad_(False)
    x, code = vectors(2, 3, 24).float(), vectors(3, 16).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = made(x, code)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, made(x, code), atol=0.05, rtol=0.02)
