"""Duels of a generator with a discriminator or critic: turns, clipping, what is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.errors import TrainingWarning
from amiss.learning.adversarial import (
    Duel,
    Logarithmic,
    Maker,
    Wasserstein,
    as_levels,
    diversity,
    draw_codes,
    mean_answer,
    measured_diversity,
)
from amiss.learning.normals import Normals
from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.nn.gan import ConvEncoder, ConvGenerator
from amiss.nn.levels import as_input
from amiss.nn.roi import inside
from amiss.run import Run
from amiss.training import Loop

SIZE = (16, 32)


@pytest.fixture
def data(normals: Path) -> TrainingImages:
    return TrainingImages(
        Normals(ImageStream(index(normals).train, size=SIZE)), np.arange(12), Run()
    )


def prepared(batch: ImageBatch) -> Tensor:
    return as_input(batch.images)


def duel(data: TrainingImages, *, epochs: int = 4, batch_size: int = 4) -> Duel:
    torch.manual_seed(0)
    generator = ConvGenerator(SIZE, 6, channels=3, width=4)
    critic = ConvEncoder(SIZE, 1, channels=3, width=4)
    return Duel(
        Maker(generator, 6, "normal", (3, *SIZE)), critic, data, prepared, epochs, batch_size
    )


def weights(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def changed(before: list[Tensor], network: nn.Module) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


# --- Wasserstein -----------------------------------------------------------------------------


def test_every_weight_of_the_critic_is_cut_after_each_of_its_steps(
    data: TrainingImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = duel(data)
    largest: list[float] = []
    update = Loop.update

    def watched(loop: Loop, name: str) -> None:
        if name == "generator":  # what it meets is the critic after its step
            largest.append(max(float(p.detach().abs().max()) for p in ours.critic.parameters()))
        update(loop, name)

    monkeypatch.setattr(Loop, "update", watched)
    rules = Wasserstein(1e-2, "rmsprop", n_critic=1, clip=0.01)
    rules.train(ours, Run(), {})
    assert len(largest) == 12 and max(largest) <= 0.01
    assert max(float(w.abs().max()) for w in weights(ours.critic)) <= 0.01


def test_what_is_made_exactly_is_no_distance_away(data: TrainingImages) -> None:
    ours = duel(data, epochs=1, batch_size=12)
    real = prepared(data.at(np.arange(12)))

    class Copier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, codes: Tensor) -> Tensor:
            return real[torch.arange(len(codes)) % len(real)] + 0 * self.weight

    same = Duel(Maker(Copier(), 6, "normal", (3, *SIZE)), ours.critic, data, prepared, 1, 12)
    history = Wasserstein(1e-4, "rmsprop", n_critic=1).train(same, Run(), {})
    assert history.losses["critic"] == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("n_critic", [1, 3, 5])
def test_the_generator_moves_once_for_so_many_steps_of_the_critic(
    data: TrainingImages, monkeypatch: pytest.MonkeyPatch, n_critic: int
) -> None:
    moves: list[str] = []
    update = Loop.update

    def watched(loop: Loop, name: str) -> None:
        moves.append(name)
        update(loop, name)

    monkeypatch.setattr(Loop, "update", watched)
    ours = duel(data, epochs=5)
    first = weights(ours.maker)
    Wasserstein(1e-3, "adam", n_critic=n_critic).train(ours, Run(), {})
    assert moves.count("critic") == 15 and moves.count("generator") == 15 // n_critic
    for turn, move in enumerate(moves):
        if move == "generator":
            assert moves[:turn].count("critic") % n_critic == 0
    assert changed(first, ours.maker)


def test_a_warm_critic_has_a_hundred_steps_for_each_of_the_first_turns() -> None:
    rules = Wasserstein(1e-3, "adam", n_critic=5, warm=True)
    turns = [step for step in range(8000) if rules.is_makers_turn(step)]
    gaps = np.diff([-1, *turns])
    assert (gaps[:25] == 100).all() and (gaps[25:500] == 5).all()
    assert gaps[500] == 100 and (gaps[501:600] == 5).all()


def test_a_linear_critic_finds_a_shift_times_its_bound(data: TrainingImages) -> None:
    """W4: real = made + 3 in one dimension; the gap of the best critic within [-c, c] is 3 c."""

    class Zeros(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, codes: Tensor) -> Tensor:
            return torch.zeros(len(codes), 1, 1, 1) + 0 * self.weight

    critic = nn.Sequential(nn.Flatten(), nn.Linear(1, 1))
    ours = Duel(
        Maker(Zeros(), 1, "normal", (1, 1, 1)), critic, data,
        lambda batch: torch.full((len(batch.images), 1, 1, 1), 3.0), 20, 4,
    )  # fmt: skip
    c = 0.02
    history = Wasserstein(1e-2, "rmsprop", n_critic=1000, clip=c).train(ours, Run(), {})
    assert history.losses["distance"][-1] == pytest.approx(3 * c, rel=1e-5)


def test_a_penalty_and_a_drift_are_part_of_what_the_critic_descends(data: TrainingImages) -> None:
    ours = duel(data, epochs=1, batch_size=12)
    ours.critic.eval()
    x = prepared(data.at(np.arange(12)))
    rules = Wasserstein(1e-9, "adam", n_critic=1000, penalty=10.0, drift=0.5)
    history = rules.train(ours, Run(), {})
    loss, distance, penalty = (
        history.losses[name][0] for name in ("critic", "distance", "penalty")
    )
    ours.critic.train()
    with torch.no_grad():
        drift = float(ours.critic(x).square().mean())
    assert loss == pytest.approx(-distance + 10 * penalty + 0.5 * drift, rel=1e-4)


def test_the_mean_answer_is_that_of_all_where_there_are_few(data: TrainingImages) -> None:
    critic = duel(data).critic.eval()
    with torch.no_grad():
        answers = critic(prepared(data.at(np.arange(12))))[:, 0]
    found = mean_answer(critic, data, prepared, Run(), count=32_000)
    assert found == pytest.approx(float(answers.mean()), rel=1e-5)
    # The scores of the images that it was averaged over are 0 on average.
    assert float((found - answers).mean()) == pytest.approx(0, abs=1e-6)
    some = [mean_answer(critic, data, prepared, Run(seed=s), count=3) for s in (0, 0, 1)]
    assert some[0] == some[1] != some[2]


# --- logarithms ------------------------------------------------------------------------------


class _Undecided(nn.Module):
    """D(.) = 0.5 of whatever image, whatever it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).mean(1, keepdim=True) * 0 + 0 * self.weight


@pytest.mark.parametrize(
    ("kind", "of_generator"), [("nonsaturating", math.log(2)), ("minimax", -math.log(2))]
)
def test_a_discriminator_that_knows_nothing_costs_two_logarithms(
    data: TrainingImages, kind: str, of_generator: float
) -> None:
    ours = duel(data, epochs=1)
    undecided = Duel(ours.maker, _Undecided(), data, prepared, 1, 4)
    history = Logarithmic(1e-3, kind=kind).train(undecided, Run(), {})
    assert history.losses["discriminator"] == pytest.approx([2 * math.log(2)], rel=1e-6)
    assert history.losses["generator"] == pytest.approx([of_generator], rel=1e-6)


@pytest.mark.parametrize(
    "rules", [Logarithmic(1e-3), Wasserstein(1e-3, "adam", n_critic=1, penalty=10.0)]
)
def test_each_learns_from_its_own_loss_alone(
    data: TrainingImages, monkeypatch: pytest.MonkeyPatch, rules: Logarithmic | Wasserstein
) -> None:
    ours = duel(data, epochs=1, batch_size=12)
    seen: dict[str, list[bool]] = {}
    update = Loop.update

    def watched(loop: Loop, name: str) -> None:
        other = "generator" if name == "critic" else "critic"
        network = loop.players[other].network
        seen.setdefault(name, []).append(
            all(p.grad is None or not p.grad.any() for p in network.parameters())
        )
        update(loop, name)

    monkeypatch.setattr(Loop, "update", watched)
    first, other = weights(ours.maker), weights(ours.critic)
    rules.train(ours, Run(), {})
    assert seen == {"critic": [True], "generator": [True]}
    assert changed(first, ours.maker) and changed(other, ours.critic)


# --- codes, pictures, diversity --------------------------------------------------------------


def test_codes_are_of_their_prior_and_of_their_seed() -> None:
    uniform, normal = draw_codes(5000, 4, "uniform", seed=1), draw_codes(5000, 4, "normal", seed=1)
    assert uniform.abs().max() <= 1 and float(uniform.std()) == pytest.approx(3**-0.5, rel=0.03)
    assert normal.abs().max() > 3 and float(normal.std()) == pytest.approx(1, rel=0.03)
    assert torch.equal(draw_codes(3, 4, "normal", seed=7), draw_codes(3, 4, "normal", seed=7))
    assert not torch.equal(draw_codes(3, 4, "normal", seed=7), draw_codes(3, 4, "normal", seed=8))


@pytest.mark.parametrize("total", [1, 3, 8, 100, 101])
def test_pictures_are_taken_at_eight_moments_the_last_at_the_end(total: int) -> None:
    torch.manual_seed(0)
    maker = Maker(ConvGenerator(SIZE, 6, channels=3, width=4), 6, "normal", (3, *SIZE))
    for step in range(1, total + 1):
        maker.remember(step, total)
    taken = [step for step in maker.taken_at.tolist() if step]
    assert taken[-1] == total and len(taken) == min(8, total) and taken == sorted(set(taken))
    assert maker.pictures[-1].float().std() > 0
    assert maker.training  # and the running statistics are those of the training
    kept = as_levels(maker.make(draw_codes(16, 6, "normal", seed=0)))
    assert torch.equal(maker.pictures[-1], kept)


def test_large_pictures_are_kept_small() -> None:
    maker = Maker(ConvGenerator((128, 192), 2, channels=1, width=2), 2, "normal", (1, 128, 192))
    maker.remember(1, 1)
    assert maker.pictures.shape == (8, 16, 1, 42, 64)


def test_levels_are_those_that_the_network_was_shown() -> None:
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    assert torch.equal(as_levels(as_input(levels)), levels)


def test_diversity_is_the_ratio_of_mean_distances() -> None:
    real = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1, 1)  # pairs 1, 3, 2
    assert diversity(real / 4, real) == pytest.approx(0.25)
    assert diversity(torch.zeros(5, 1, 1, 1), real) == 0


def test_a_collapsed_generator_is_told(data: TrainingImages) -> None:
    class Same(nn.Module):
        def forward(self, codes: Tensor) -> Tensor:
            return torch.zeros(len(codes), 3, *SIZE) + 0.001 * codes[:, :1, None, None]

    said: list[str] = []
    maker = Maker(Same(), 6, "normal", (3, *SIZE))
    found = measured_diversity(maker, data, prepared, Run(say=said.append))
    assert found < 0.1 and "mode collapse" in said[0]
    with pytest.warns(TrainingWarning, match="mode collapse"):
        measured_diversity(maker, data, prepared, Run())

    class Varied(nn.Module):
        def forward(self, codes: Tensor) -> Tensor:
            return torch.rand(len(codes), 3, *SIZE) * 2 - 1

    said.clear()
    wide = Maker(Varied(), 6, "normal", (3, *SIZE))
    assert measured_diversity(wide, data, prepared, Run(say=said.append)) > 0.5 and not said


def test_a_duel_counts_its_steps(data: TrainingImages) -> None:
    ours: Any = duel(data, epochs=3, batch_size=5)
    history = Logarithmic(1e-3).train(ours, Run(), {})
    assert history.steps == ours.steps == 6
    assert ours.maker.taken_at.tolist()[-1] == 6
    assert duel(data, epochs=4, batch_size=100).steps == 4


def test_how_few_moves_the_generator_will_make_is_said(data: TrainingImages) -> None:
    def told(rules: Logarithmic | Wasserstein, epochs: int) -> str:
        said: list[str] = []
        rules.train(duel(data, epochs=epochs), Run(say=said.append), {})
        return " ".join(said)

    assert "the generator will move 12 times" in told(Logarithmic(1e-3), 4)
    assert "will move 4 times" in told(Wasserstein(1e-3, "adam", n_critic=3), 4)
    # 102 steps: the critic's first hundred, then once.
    assert "will move 1 times" in told(Wasserstein(1e-3, "adam", n_critic=3, warm=True), 34)


def test_the_memory_of_the_generators_turn_counts(data: TrainingImages) -> None:
    told: list[str] = []
    run = Run(say=told.append, progress=lambda _, done, __: told.append(str(done)))
    Wasserstein(1e-3, "adam", n_critic=4).train(duel(data), run, {})
    (place,) = [i for i, line in enumerate(told) if line.startswith("memory: about")]
    assert told[place - 1] == "3" and told[place + 1] == "4"


def test_the_finished_discriminator_tells_what_is_real(data: TrainingImages) -> None:
    """By the statistics that its batch norms gathered on the way, from real and from made images,
    the same weights say the opposite here."""
    ours = duel(data, epochs=150)
    Logarithmic(1e-3).train(ours, Run(), {})
    real = prepared(data.at(np.arange(12)))
    with torch.no_grad():
        made = ours.maker.make(ours.maker.draw(12, seed=1))
        assert float(ours.critic(real).mean()) > float(ours.critic(made).mean())
    assert not ours.critic.training and not ours.maker.training


def test_both_are_settled_alike_whatever_their_norms_have_gathered(data: TrainingImages) -> None:
    """As in two processes, whose norms have seen different shares of the images."""
    found = []
    for scale in (0.0, 1.0):
        ours = duel(data)

        def spoil(stage: str, *_: object, of: Duel = ours, by: float = scale) -> None:
            for network in (of.maker, of.critic):
                for name, buffer in network.named_buffers():
                    if name.endswith("running_mean") and stage == "training":
                        buffer.add_(by)

        Logarithmic(1e-3).train(ours, Run(progress=spoil), {})
        found.append({**ours.maker.generator.state_dict(), **ours.critic.state_dict()})
    one, other = found
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "rules", [Logarithmic(1e-3), Wasserstein(1e-3, "adam", n_critic=2, penalty=1.0)]
)
def test_the_critic_sees_nothing_outside_of_the_regions(
    data: TrainingImages, rules: Logarithmic | Wasserstein
) -> None:
    assert data.kept is not None
    rois = torch.zeros(12, *SIZE, dtype=torch.bool)
    rois[:, 4:12, 8:24] = True
    data.kept = ImageBatch(data.kept.images, rois)
    ours = duel(data, epochs=1)
    seen: list[Tensor] = []
    ours.critic.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    masked = Duel(ours.maker, ours.critic, data, lambda b: inside(prepared(b), b.rois), 1, 4)
    rules.train(masked, Run(), {})
    assert len(seen) >= 9
    assert all(not x[:, :, :4].any() and not x[..., 24:].any() for x in seen)
    assert all(x[:, :, 4:12, 8:24].any() for x in seen)
