"""A step that takes more memory than is granted ends before it does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from amiss.errors import MemoryLimitError
from amiss.learning.step_memory import StepMemory
from amiss.methods.fyd import FYD
from amiss.run import Run


def _pass(network: nn.Module, x: Tensor) -> Tensor:
    loss: Tensor = network(x).square().mean()
    return loss


def test_what_is_kept_is_counted_once_and_forgotten_after_backward() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    x = torch.randn(4096, 64)  # 1 MiB; each layer's answer as well
    with StepMemory(Run(), "training", ()) as memory:
        _pass(network, x).backward()
        once = memory.most
        memory.forget()
        _pass(network, x).backward()
    assert 3 << 20 <= once <= 6 << 20
    assert memory.most == once


def test_a_step_that_takes_too_much_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amiss.learning.step_memory.resident_mib", lambda: 100.0)
    network = nn.Sequential(*(nn.Linear(64, 64) for _ in range(20)))
    x = torch.randn(4096, 64)
    reached: list[bool] = []
    network[15].register_forward_hook(lambda *_: reached.append(True))
    with (
        pytest.raises(MemoryLimitError, match="A step of the lesson takes more than"),
        StepMemory(Run(max_memory_mib=110), "lesson", ()),
    ):
        _pass(network, x)
    assert not reached
    with StepMemory(Run(max_memory_mib=200), "lesson", ()) as memory:
        _pass(network, x)
    assert 120 < memory.peak_mib < 200
    _pass(network, x).backward()  # the hooks are gone


def test_weights_count_once_and_what_learning_adds_to_them_before_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("amiss.learning.step_memory.resident_mib", lambda: 100.0)
    network = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.Tanh())  # 4 MiB
    adam = torch.optim.Adam(network.parameters())
    x = torch.randn(2, 1024, requires_grad=True)
    with StepMemory(Run(), "training", [adam]) as memory:
        _pass(network, x).backward()
    assert memory.before == 100 + 3 * 4
    assert 0 < memory.most < 1 << 20  # the weights, which autograd keeps too, were there before
    adam.step()
    assert StepMemory(Run(), "training", [adam]).before == 100 + 4  # as when it goes on


def test_a_training_says_what_it_takes_and_keeps_the_limit(normals: Path) -> None:
    options = {
        "backbone": "test_efficientnet", "weights": "random", "image_size": (48, 64),
        "layers": ("4", "8"), "dim": 4, "head_dim": 8, "epochs": 1, "batch_size": 4,
    }  # fmt: skip
    said: list[str] = []
    FYD(**options).fit(normals, max_false_alarm=0.5, run=Run(say=said.append))
    assert any("at the peak of the training" in sentence for sentence in said)
    with pytest.raises(MemoryLimitError, match="are granted") as caught:
        FYD(**options).fit(normals, run=Run(max_memory_mib=50))
    found = re.search(
        r"the program itself, with images and weights, takes (\d+) MiB", caught.value.hint
    )
    assert found is not None and 50 < int(found[1]) < 10_000
