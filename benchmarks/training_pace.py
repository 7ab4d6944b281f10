"""Images per second of our training beside a plain eager loop of the same networks.

    python benchmarks/training_pace.py --data SET [--images 16] [--precision 32-true bf16-mixed]
        [--output FILE]

The plain loop keeps networks and images in torch's default layout and asks the frozen teacher or
source again in every step. Ours is what `fit` runs: `train` over what is kept, one epoch, and as
`whole training` with the pass that makes what is kept, over as many epochs as the method's page
recommends. Same images, same batches, same optimizers; medians of five rounds, taken in turn, in
one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write_json
from torch import nn

import amiss
from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.learning.normals import Normals
from amiss.learning.training_images import TaughtImages
from amiss.nn.backbone import FeatureExtractor
from amiss.nn.cloner import Cloner
from amiss.nn.losses import direction_loss, value_loss
from amiss.nn.patch_network import PatchNetwork
from amiss.nn.student_ensemble import StudentEnsemble, regression_loss

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", nargs="+", default=["32-true"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    records = index(options.data).train[: options.images]
    found: dict[str, Any] = {}
    for name, make in (("mkd", mkd), ("uninformed_students", uninformed_students)):
        loops, keeping, epochs = make(records, options.precision)
        seconds: dict[str, list[float]] = {loop: [] for loop in loops}
        for run in loops.values():
            run()  # warm
        for _ in range(ROUNDS):
            for loop, run in loops.items():
                began = time.perf_counter()
                run()
                seconds[loop].append(time.perf_counter() - began)
        pace = {k: options.images / statistics.median(v) for k, v in seconds.items()}
        epoch = {k: statistics.median(v) for k, v in seconds.items()}
        whole = {
            k: epochs * epoch["plain"] / (epochs * one + keeping)
            for k, one in epoch.items() if k != "plain"
        }  # fmt: skip
        found[name] = {"images_per_second": pace, "seconds": seconds, "keeping_seconds": keeping,
                       "epochs": epochs, "whole_training_ratio": whole}  # fmt: skip
        for loop, value in pace.items():
            more = f", whole training {whole[loop]:.2f}x" if loop in whole else ""
            print(f"{name}: {loop} {value:.2f} images/s, {value / pace['plain']:.2f}x{more}",
                  flush=True)  # fmt: skip
    if options.output:
        write_json(options.output, {"machine": describe(options.threads), "methods": found})


Loops = tuple[dict[str, Callable[[], None]], float, int]
"""The loops by name, the seconds of the pass that keeps targets, and epochs."""


def uninformed_students(records: Any, precisions: list[str]) -> Loops:
    """Three students of one teacher, at the settings for CPUs that the method's page gives."""
    cfg: dict[str, Any] = {"patch_sizes": (65,), "stride": 8, "width": 0.5, "teacher": "random"}
    detector = amiss.UninformedStudents(**cfg, image_size=(128, 128), epochs=1)
    images = Normals(ImageStream(records, size=(128, 128)))
    ensemble = StudentEnsemble((65,), 3, 0.5, 8)
    ensemble.teachers.requires_grad_(False)
    began = time.perf_counter()
    data = TaughtImages(images, np.arange(len(images)), amiss.Run(), ensemble.taught)
    keeping = time.perf_counter() - began
    detector.facts["teacher"] = {}

    teacher, *students = (PatchNetwork(65, 0.5, 8) for _ in range(4))
    optimizers = [
        torch.optim.Adam(s.to(memory_format=torch.contiguous_format).parameters(), lr=1e-4)
        for s in students
    ]
    teacher.to(memory_format=torch.contiguous_format)

    def plain() -> None:
        for place in range(len(images)):
            levels = data.at(np.array([place])).images.contiguous()
            x = levels.float() / 127.5 - 1
            with torch.no_grad():
                wanted = teacher(x)
            for student, optimizer in zip(students, optimizers, strict=True):
                regression_loss(student(x), wanted).backward()
                optimizer.step()
                optimizer.zero_grad()

    def ours(precision: str) -> None:
        for student in ensemble.students:
            student.requires_grad_(True)
        detector._train(data, ensemble, replace(amiss.Run(), precision=precision))

    loops = {p: lambda p=p: ours(p) for p in precisions}
    return {"plain": plain, **loops}, keeping, 6


def mkd(records: Any, precisions: list[str]) -> Loops:
    """The embedded source and its cloner at the defaults."""
    detector = amiss.MKD(epochs=1, direction_weight=1.0)
    images = Normals(ImageStream(records, size=(128, 128)))
    detector.extractor = FeatureExtractor(detector.config.backbone, detector.config.layers)
    source = detector.extractor
    began = time.perf_counter()
    data = TaughtImages(images, np.arange(len(images)), amiss.Run(), detector._source)
    keeping = time.perf_counter() - began
    detector.cloner, shape = detector._new_cloner(data, amiss.Run())
    theirs = Cloner(**shape).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    # The folded network is ours; the zoo's own, as it comes, is what a plain loop would ask.
    import timm

    zoo: nn.Module = timm.create_model(
        detector.config.backbone, features_only=True, pretrained=False, out_indices=(1, 2, 3, 4)
    ).eval()

    def plain() -> None:
        levels = data.at(np.arange(len(images))).images.contiguous()
        x = source.normalised(levels).contiguous()
        with torch.no_grad():
            said = zoo(x)
        pairs = list(zip(said, theirs(x), strict=True))
        value = torch.stack([value_loss(s, c) for s, c in pairs]).sum(0)
        direction = torch.stack([direction_loss(s, c) for s, c in pairs]).sum(0)
        (value + direction).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def ours(precision: str) -> None:
        assert detector.cloner is not None
        detector.cloner.requires_grad_(True)
        detector._train(data, replace(amiss.Run(), precision=precision))

    loops = {p: lambda p=p: ours(p) for p in precisions}
    return {"plain": plain, **loops}, keeping, 200


if __name__ == "__main__":
    main()
