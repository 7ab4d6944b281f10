"""GANomaly: its losses and score as the formulas have them, and what a training leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import amiss
from amiss.errors import DataError, OptionError
from amiss.methods.ganomaly import Autoencoder, GANomaly, GANomalyConfig, Made
from amiss.nn.levels import as_gray, as_input
from amiss.run import Run
from made_images import textures

TINY: dict[str, Any] = {
    "image_size": (16, 32),
    "width": 4,
    "latent_dim": 6,
    "epochs": 2,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def fitted(normals: Path) -> GANomaly:
    return GANomaly(**TINY).fit(normals, max_false_alarm=0.4)


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 3, 16, 32), dtype=torch.uint8, generator=generator)


def test_encoders_and_decoder_have_the_papers_counts_of_weights() -> None:
    for colors, count in (("gray", 3_200_384), ("rgb", 3_206_528)):
        with torch.device("meta"):
            networks = Autoencoder(GANomalyConfig(colors=colors))
        assert sum(p.numel() for p in networks.parameters()) == count


def test_codes_and_what_is_made_have_their_shapes() -> None:
    networks = Autoencoder(GANomalyConfig(colors="gray")).eval()
    with torch.no_grad():
        made = networks(torch.zeros(2, 1, 32, 32))
    assert made.code.shape == made.code_again.shape == (2, 100)
    assert made.reconstruction.shape == (2, 1, 32, 32)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_the_score_is_the_distance_of_the_codes(
    normals: Path, images: Tensor, variant: str
) -> None:
    detector = GANomaly(**TINY, variant=variant).fit(normals, max_false_alarm=0.4)
    assert detector.networks is not None
    with torch.inference_mode():
        found = detector(images)
        made = detector.networks(as_input(images))
    apart = made.code - made.code_again
    wanted = apart.abs().sum(1) if variant == "paper" else apart.square().mean(1)
    torch.testing.assert_close(found.score, wanted, rtol=1e-4, atol=1e-6)
    residual = (as_input(images) - made.reconstruction).abs().mean(1)
    torch.testing.assert_close(found.anomaly_map, residual, rtol=1e-4, atol=1e-5)


class _Loop:
    """As much of a training as the losses ask for."""

    def __init__(self, discriminator: torch.nn.Module) -> None:
        self.discriminator = discriminator

    def frozen(self, name: str) -> Any:
        from contextlib import nullcontext

        assert name == "discriminator"
        return nullcontext(self.discriminator)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_losses_are_those_of_the_formulas(images: Tensor, variant: str) -> None:
    detector = GANomaly(**TINY, variant=variant, adv_weight=2.0, con_weight=3.0, enc_weight=5.0)
    torch.manual_seed(0)
    judge = detector._discriminator().eval()
    x = as_input(images)
    made = Made(torch.randn(3, 6), torch.rand(3, 3, 16, 32), torch.randn(3, 6))
    with torch.no_grad():
        found = detector._losses(_Loop(judge), x, made, None)  # type: ignore[arg-type]
        f = judge.features(x) - judge.features(made.reconstruction)
    pixels, codes = x - made.reconstruction, made.code - made.code_again
    if variant == "paper":
        wanted = (
            f.flatten(1).norm(dim=1).mean(),
            pixels.flatten(1).norm(p=1, dim=1).mean(),
            codes.norm(dim=1).mean(),
        )
    else:
        wanted = (f.square().mean(), pixels.abs().mean(), codes.square().mean())
    for name, value in zip(("adversarial", "contextual", "encoded"), wanted, strict=True):
        torch.testing.assert_close(found[name], value)
    total = 2 * wanted[0] + 3 * wanted[1] + 5 * wanted[2]
    torch.testing.assert_close(found["loss"], total)


class _Remembers(torch.nn.Module):
    """A decoder that gives back what was encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.empty(0)

    def forward(self, code: Tensor) -> Tensor:
        return self.x


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_an_image_made_without_fault_costs_and_scores_nothing(
    normals: Path, images: Tensor, variant: str
) -> None:
    detector = GANomaly(**TINY, variant=variant).fit(normals, max_false_alarm=0.4)
    networks = detector.networks
    assert networks is not None
    image = images[:1]
    with torch.inference_mode():
        before = float(detector(image).score)
        networks.second_encoder.load_state_dict(networks.encoder.state_dict())
        perfect = _Remembers()
        perfect.x = x = as_input(image)
        networks.decoder = perfect  # type: ignore[assignment]
        found = detector(image)
        judge = detector._discriminator().eval()
        losses = detector._losses(_Loop(judge), x, networks(x), None)  # type: ignore[arg-type]
    assert float(found.score) < 1e-3 * before and found.anomaly_map is not None
    assert not found.anomaly_map.any()
    # The root of what is 0 is kept from 0.
    assert all(float(value) < 1e-3 for value in losses.values())


def test_a_score_does_not_depend_on_company(fitted: GANomaly, images: Tensor) -> None:
    with torch.inference_mode():
        together, alone = fitted(images).score, fitted(images[1:2]).score
    assert torch.equal(together[1:2], alone)


def test_gray_learns_the_mean_of_the_colours(normals: Path, images: Tensor) -> None:
    detector = GANomaly(**TINY, colors="gray").fit(normals, max_false_alarm=0.4)
    assert detector.networks is not None
    first = detector.networks.encoder.body[0]
    assert isinstance(first, torch.nn.Conv2d) and first.in_channels == 1
    assert torch.equal(as_gray(images.float())[0, 0, 0, 0], images[0, :, 0, 0].float().mean())
    with torch.inference_mode():
        swapped = detector(images.flip(1)).score
        torch.testing.assert_close(detector(images).score, swapped, rtol=1e-4, atol=1e-6)


def test_a_discriminator_that_has_won_is_made_anew(
    normals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr("amiss.methods.ganomaly._FOOLED_NOBODY", 1e9)
    monkeypatch.setattr("amiss.methods.ganomaly.init_weights", lambda network: drawn.append(1))
    GANomaly(**TINY, variant="code").fit(normals, max_false_alarm=0.4)
    assert drawn
    drawn.clear()
    GANomaly(**TINY).fit(normals, max_false_alarm=0.4)
    assert not drawn  # that is the code's alone


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_an_interrupted_fit_ends_alike(
    normals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    monkeypatch.setattr("amiss.methods.ganomaly._FOOLED_NOBODY", 0.9)  # made anew again and again
    fitted = GANomaly(**TINY, variant=variant).fit(normals, max_false_alarm=0.4)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 3:
            raise KeyboardInterrupt

    partial = tmp_path / "x.partial"
    with pytest.raises(KeyboardInterrupt):
        GANomaly(**TINY, variant=variant).fit(normals, run=Run(partial=partial, progress=stop))
    steps: list[int] = []
    run = Run(
        partial=partial,
        progress=lambda stage, n, _: steps.append(n) if stage == "training" else None,
    )
    again = GANomaly(**TINY, variant=variant).fit(normals, max_false_alarm=0.4, run=run)
    assert steps[0] == 4
    one, other = fitted.artifact()[1], again.artifact()[1]
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_what_was_learned_is_said(fitted: GANomaly) -> None:
    assert {"loss", "adversarial", "contextual", "encoded", "discriminator"} == set(
        fitted.facts["losses"]
    )
    assert "codes of 6 values of 16 x 32 px" in fitted.summary()


def test_a_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(OptionError, match="cannot be halved"):
        amiss.GANomaly(image_size=(50, 50))


def test_two_images_are_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="kept apart"):
        GANomaly(**TINY).fit(textures(tmp_path / "two", 2, seed=1))
