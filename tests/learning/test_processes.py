"""Two processes over gloo do what one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import amiss
from amiss.methods.fyd import FYD
from amiss.methods.padim import PaDiM
from commands import amiss as run_amiss

SHARED: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "weights": "random",
    "image_size": (48, 64),
    "layers": ("4", "8"),
    "dim": 20,
}
FLAGS = [
    "--backbone", "test_efficientnet", "--weights", "random", "--image-size", "48x64",
    "--layers", "4,8", "--dim", "20", "--max-false-alarm", "0.4", "--threads", "1",
]  # fmt: skip


def by_two_processes(*arguments: object) -> None:
    """`amiss fit ...` in two processes that know of each other, as torchrun starts them."""
    said = in_two_processes("-m", "amiss", "fit", *arguments)
    assert "Gaussians" in said[0] and "Gaussians" not in said[1]  # the first one speaks


def in_two_processes(*arguments: object) -> list[str]:
    """Python with these arguments, twice; what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port)}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=os.environ | base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return said


@pytest.mark.slow
def test_padim_by_two_processes_is_padim_by_one(normals: Path, tmp_path: Path) -> None:
    by_two_processes("padim", normals, "-o", tmp_path / "two.amiss", *FLAGS)
    two = amiss.load(tmp_path / "two.amiss")
    one = PaDiM(**SHARED).fit(normals, max_false_alarm=0.4)
    assert one.gaussians is not None and one.calibration is not None
    torch.testing.assert_close(two.gaussians.mean, one.gaussians.mean)
    torch.testing.assert_close(two.gaussians.factor, one.gaussians.factor, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(two.calibration.scores, one.calibration.scores, rtol=1e-4)
    assert np.array_equal(two.training_digests, one.training_digests)


@pytest.mark.slow
def test_fyd_by_two_processes_is_fyd_in_two_parts(normals: Path, tmp_path: Path) -> None:
    flags = ["--head-dim", "16", "--batch-size", "4", "--epochs", "2"]
    by_two_processes("fyd", normals, "-o", tmp_path / "two.amiss", *FLAGS, *flags)
    two = amiss.load(tmp_path / "two.amiss")
    one = FYD(**SHARED, head_dim=16, batch_size=4, epochs=2, parts=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: Adam makes much of the last bit of a small gradient
    try:
        one.fit(normals, max_false_alarm=0.4)
    finally:
        torch.set_num_threads(threads)
    assert one.alignment is not None and one.calibration is not None
    for name, value in one._transformers().items():
        theirs = two._transformers()[name]
        torch.testing.assert_close(theirs, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(two.calibration.scores, one.calibration.scores, rtol=1e-4)


FIT = """
import os, sys, torch, amiss
torch.set_num_threads(1)
shape = dict(image_size=(16, 32), width=4, epochs=2, batch_size=4)
for detector in (
    amiss.FAnoGAN(**shape, latent_dim=6, n_critic=1, encoder_epochs=2),
    amiss.EGBAD(**shape, latent_dim=6, network="deep", cycle_weight=1.0),
    amiss.DAAD(**shape, scales=2, items=5, adversarial=True, discriminator_width=4),
):
    detector.fit(sys.argv[1], max_false_alarm=0.4)
    torch.save(detector.networks.state_dict(), sys.argv[2] + detector.id + os.environ["RANK"])
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_networks(normals: Path, tmp_path: Path) -> None:
    """Batch norms too, each of which has seen half of the images."""
    in_two_processes("-W", "ignore", "-c", FIT, normals, tmp_path / "networks")
    for method in ("fanogan", "egbad", "daad"):
        one, other = (
            torch.load(tmp_path / f"networks{method}{rank}", weights_only=True) for rank in range(2)
        )
        pictures = {name for name in one if name.endswith(("pictures", "taken_at"))}
        assert one.keys() == other.keys()
        for name in one.keys() - pictures:
            assert torch.equal(one[name], other[name]), (method, name)


def test_the_flags_of_training_reach_the_run(
    normals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = run_amiss(capsys, "fit", "padim", normals, "-o", tmp_path / "x.amiss", *FLAGS,
                     "--device", "abacus")  # fmt: skip
    assert told.status == 1 and "device='abacus' is not known" in told.err
