"""The one training loop: order, checkpoints, what is reported."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amiss import training
from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.errors import MissingDependencyError, OptionError, TrainingError
from amiss.learning import training_images
from amiss.learning.normals import Normals
from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.run import Run
from amiss.training import Loop, Player, require_device, train


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 3, 3)
    )


def step(loop: Loop, batch: ImageBatch) -> dict[str, Tensor]:
    images = batch.images.float() / 255
    noisy = images + 0.1 * torch.rand_like(images)  # of the global generator, on purpose
    loss = (loop.networks["net"](noisy) - images[:, :, 2:-2, 2:-2]).square().mean()
    loop.backward(loss)
    loop.update("net")
    return {"loss": loss.detach()}


@pytest.fixture
def images(normals: Path) -> Normals:
    return Normals(ImageStream(index(normals).train, size=(24, 32)))


def learned(
    images: Normals, run: Run | None = None, on_step: Any = None, **options: Any
) -> tuple[nn.Module, training.History]:
    net = network()
    player = Player(net, torch.optim.Adam(net.parameters(), lr=1e-2), clip_norm=1.0)

    def watched(loop: Loop, x: ImageBatch) -> dict[str, Tensor]:
        if on_step is not None:
            on_step(loop.step, x)
        return step(loop, x)

    run = run or Run()
    settings = {"epochs": 4, "batch_size": 4, "job": {"a": 1}} | options
    history = train(
        {"net": player}, TrainingImages(images, np.arange(len(images)), run), watched, run=run,
        **settings,
    )  # fmt: skip
    return net, history


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_loss_falls_and_is_reported(images: Normals) -> None:
    said: list[str] = []
    steps: list[tuple[int, int]] = []
    run = Run(say=said.append, progress=lambda _, done, total: steps.append((done, total)))
    net, history = learned(images, run, epochs=20)
    assert history.losses["loss"][-1] < 0.5 * history.losses["loss"][0]
    assert history.last() == {"loss": history.losses["loss"][-1]} and history.steps == 60
    assert steps == [(i + 1, 60) for i in range(60)]
    assert said[-1].startswith("epoch 20 of 20: loss ")
    assert sum("epoch" in sentence for sentence in said) == 10
    assert not net.training and history.images_per_second > 0


def test_every_epoch_goes_over_the_images_in_another_order(images: Normals) -> None:
    seen: dict[int, list[float]] = {}
    learned(images, on_step=lambda s, x: seen.setdefault(s // 3, []).extend(
        x.images.double().flatten(1).std(1).tolist()))  # fmt: skip
    assert len(seen) == 4 and all(len(set(v)) == 12 for v in seen.values())
    assert sorted(seen[0]) == sorted(seen[1]) and seen[0] != seen[1]


def test_the_rest_that_fills_no_batch_waits_for_another_epoch(images: Normals) -> None:
    sizes: list[int] = []
    _, history = learned(images, batch_size=5, on_step=lambda _, x: sizes.append(len(x.images)))
    assert sizes == [5] * 8 and history.steps == 8
    _, few = learned(images, batch_size=100)
    assert few.steps == 4


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state(images: Normals) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, _ = learned(images)
    torch.set_rng_state(before)
    train_state = torch.get_rng_state()
    other, _ = learned(images)
    different, _ = learned(images, Run(seed=1))
    assert same(one, other) and not same(one, different)
    assert torch.equal(train_state, before)


def test_images_read_anew_are_the_same_as_images_kept(
    images: Normals, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = learned(images)
    monkeypatch.setattr(training_images, "ceiling_mib", lambda _: 1.0)
    assert TrainingImages(images, np.arange(3), Run()).kept is None
    other, _ = learned(images)
    assert same(one, other)


@pytest.mark.parametrize("at", [1, 2, 5, 9])  # 2 and 5 end an epoch
@pytest.mark.parametrize("where", ["step", "progress"])
def test_a_training_that_was_interrupted_ends_with_the_same_bits(
    images: Normals, tmp_path: Path, at: int, where: str
) -> None:
    whole, history = learned(images)
    partial = tmp_path / "x.partial"

    def interrupt(number: int, _: Tensor) -> None:
        if where == "step" and number == at:
            os.kill(os.getpid(), signal.SIGINT)

    def tell(_: str, done: int, total: int) -> None:
        if where == "progress" and done == at + 1:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        learned(images, Run(partial=partial, progress=tell), interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    started: list[int] = []
    again, resumed = learned(images, Run(partial=partial), lambda number, _: started.append(number))
    assert started[0] == at + 1 and same(again, whole)
    assert resumed.losses == history.losses


def test_a_second_interruption_does_not_wait(images: Normals, tmp_path: Path) -> None:
    run = Run(partial=tmp_path / "x.partial")

    def interrupt(number: int, _: Tensor) -> None:
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        learned(images, run, interrupt)
    assert run.partial is not None and not run.partial.exists()  # half a step is no checkpoint


def test_losses_that_are_not_finite_are_a_named_error(images: Normals) -> None:
    run = Run()
    net = network()
    player = Player(net, torch.optim.SGD(net.parameters(), lr=1e30), clip_norm=1.0)
    with pytest.raises(TrainingError, match="'loss' is not finite"):
        train({"net": player}, TrainingImages(images, np.arange(12), run), step, epochs=4,
              batch_size=4, run=run, job={})  # fmt: skip


@pytest.mark.parametrize("breaks", ["loss", "weights"])
def test_what_breaks_leaves_the_last_good_checkpoint(
    images: Normals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    partial = tmp_path / "x.partial"
    run = Run(partial=partial)
    net = network()
    player = Player(net, torch.optim.Adam(net.parameters(), lr=1e-2))
    kept: list[bytes] = []

    def breaking(loop: Loop, x: ImageBatch) -> dict[str, Tensor]:
        if partial.exists():
            kept.append(partial.read_bytes())
        found = step(loop, x)
        if loop.step == 3 and breaks == "loss":
            return {"loss": found["loss"] * torch.nan}
        if loop.step == 3:
            with torch.no_grad():
                net[0].weight.fill_(torch.nan)
        return found

    what = "The loss 'loss' is" if breaks == "loss" else "The weights 0.weight of net are"
    with pytest.raises(TrainingError, match=f"{what} not finite in step 4.*step 3, is kept in"):
        train({"net": player}, TrainingImages(images, np.arange(12), run), breaking, epochs=4,
              batch_size=4, run=run, job={})  # fmt: skip
    assert len(kept) == 3 and partial.read_bytes() == kept[-1]


def test_a_training_that_was_killed_goes_on_from_its_last_checkpoint(
    images: Normals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = learned(images)
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    run = Run(partial=tmp_path / "x.partial")

    class KilledError(BaseException):
        """Not to be caught: what a kill leaves is what was written before."""

    def kill(number: int, _: Tensor) -> None:
        if number == 7 and not started:
            raise KilledError

    started: list[int] = []
    with pytest.raises(KilledError):
        learned(images, run, kill)
    again, _ = learned(images, run, lambda number, _: started.append(number))
    assert started[0] == 7 and same(again, whole)


def test_a_checkpoint_of_another_job_is_not_used(images: Normals, tmp_path: Path) -> None:
    run = Run(partial=tmp_path / "x.partial")

    def interrupt(number: int, _: Tensor) -> None:
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        learned(images, run, interrupt)
    assert run.partial is not None and run.partial.exists()
    started: list[int] = []
    learned(images, run, lambda number, _: started.append(number), job={"a": 2})
    assert started[0] == 0


def test_gradients_are_cut_to_their_norm(images: Normals) -> None:
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    player = Player(net, torch.optim.SGD(net.parameters(), lr=1.0), clip_norm=1e-3)
    run = Run()
    train(
        {"net": player}, TrainingImages(images, np.arange(12), run), step, epochs=1,
        batch_size=12, run=run, job={},
    )  # fmt: skip
    pairs = zip(net.parameters(), before, strict=True)
    moved = sum((p.detach() - q).square().sum() for p, q in pairs)
    assert float(moved) ** 0.5 == pytest.approx(1e-3, rel=1e-3)


def test_devices_and_precisions_are_checked() -> None:
    with pytest.raises(OptionError, match="device='gpu' is not known"):
        Run(device="gpu")
    with pytest.raises(OptionError, match="precision='8' is not known"):
        Run(precision="8")
    with pytest.raises(OptionError, match="for GPUs"):
        require_device(Run(precision="16-mixed"))
    if not torch.cuda.is_available():
        with pytest.raises(OptionError, match="device=cuda: torch finds none"):
            require_device(Run(device="cuda"))


def test_lower_precision_trains_too(images: Normals) -> None:
    _, history = learned(images, Run(precision="bf16-mixed"), epochs=20)
    assert history.losses["loss"][-1] < 0.5 * history.losses["loss"][0]


# --- the log ---------------------------------------------------------------------------------


def test_losses_are_written_for_tensorboard_when_asked(
    images: Normals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "log")

        def add_scalar(self, name: str, value: float, epoch: int) -> None:
            written.append((name, value, epoch))

        def flush(self) -> None:
            pass

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    _, history = learned(images, Run(log=tmp_path / "log"))
    expected = [("loss", value, i) for i, value in enumerate(history.losses["loss"], 1)]
    assert written == expected and len(written) == 4


def test_a_log_without_tensorboard_names_the_extra(
    images: Normals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"amiss\[tensorboard\]"):
        learned(images, Run(log=tmp_path / "log"))


def test_a_long_training_is_foretold_once(images: Normals, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    clock = iter(range(0, 10**9, 600))  # ten minutes from one look to the next
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(clock)))
    learned(images, Run(say=said.append), epochs=20)
    foretold = [sentence for sentence in said if "hours to go at this pace" in sentence]
    assert len(foretold) == 1 and foretold[0].startswith("training: about ")


def test_what_is_frozen_for_a_while_learns_no_more_than_before(images: Normals) -> None:
    net = network()
    first, *others = net.parameters()
    first.requires_grad_(False)
    seen: list[bool] = []

    def watched(loop: Loop, x: ImageBatch) -> dict[str, Tensor]:
        with loop.frozen("net") as frozen:
            seen.append(any(weight.requires_grad for weight in frozen.parameters()))
        assert not first.requires_grad and all(weight.requires_grad for weight in others)
        return step(loop, x)

    player = Player(net, torch.optim.Adam(others, lr=1e-2))
    data = TrainingImages(images, np.arange(len(images)), Run())
    train({"net": player}, data, watched, epochs=1, batch_size=6, run=Run(), job={})
    assert seen == [False, False]


def test_small_losses_keep_their_digits() -> None:
    history = training.History({"critic": [1.23456789e-7, -12345.678]}, 2, 1.0, 1.0)
    assert history.facts()["losses"] == {"critic": [1.23457e-7, -12345.7]}


def test_the_time_of_all_stretches_counts(images: Normals, tmp_path: Path) -> None:
    run = Run(partial=tmp_path / "x.partial")

    def slow_at_first(number: int, _: ImageBatch) -> None:
        time.sleep(0.3 if number == 0 else 0)
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        learned(images, replace(run, say=said.append), on_step=slow_at_first)
    assert said[-1] == "training: stopped after step 3 of 12"
    _, history = learned(images, run)
    assert history.seconds > 0.3 and history.steps == 12
