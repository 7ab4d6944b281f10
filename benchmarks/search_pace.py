"""AnoGAN's search: images per second all at once and one by one, and whether scores agree.

    python benchmarks/search_pace.py --data SET [--side 32] [--width 64] [--steps 100]
        [--batches 16 64] [--alone 8] [--threads N] [--output FILE]

A DCGAN is trained for one epoch on SET in grey, then the search runs over its test images. `plain`
is the loop of a script: one image after the other, torch's Adam on its code, networks as they were
trained; `alone` is ours one by one, `batch` ours with so many at once. The pace is per 100 steps;
scores of the same images are compared with those of `alone`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from machine import describe, write_json
from torch import Tensor

import amiss
from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.learning.normals import to_tensors
from amiss.learning.training_images import ImageBatch


def plain(detector: amiss.AnoGAN, x: Tensor, steps: int) -> float:
    """The loss of one image x (1, C, H, W) after a search as scripts have it."""
    networks, weight = detector.networks, detector.config.feature_weight
    code = networks.maker.draw(1, seed=0).requires_grad_()
    adam = torch.optim.Adam([code], lr=detector.config.search_rate)
    loss = torch.zeros(())
    for step in range(steps + 1):
        if step:
            part = (step - 1) / steps
            share = 1.0 if part < 0.4 else 0.1 if part < 0.6 else 0.05
            adam.param_groups[0]["lr"] = detector.config.search_rate * share
            adam.zero_grad()
            loss.backward()
            adam.step()
        made = networks.maker(code)
        residual = (x - made).abs().sum()
        features = (networks.critic.features(x) - networks.critic.features(made)).abs().sum()
        loss = (1 - weight) * residual + weight * features
    return float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--alone", type=int, default=8, help="images that are searched one by one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = describe(options.threads)
    records = index(options.data)
    size = (options.side, options.side)
    detector = amiss.AnoGAN(image_size=size, colors="gray", width=options.width, epochs=1,
                            search_steps=1)  # fmt: skip
    detector.fit(records, max_false_alarm=0.05, run=amiss.Run(say=print))
    asked = {**vars(detector.config), "search_steps": options.steps}
    searching = amiss.AnoGAN(**asked)
    searching.restore(*detector.artifact())
    count = max(options.batches)
    (batch,) = ImageStream(records.test[:count], size=size).batches(count)
    x, _ = to_tensors(batch.images, None)
    ready = searching.config.prepared(ImageBatch(x, None))
    ways = {
        "plain": lambda: [plain(searching, one, options.steps) for one in
                          ready[: options.alone].split(1)],
        "alone": lambda: torch.cat([searching(one).score for one in x[: options.alone].split(1)]),
        **{f"batch {n}": lambda n=n: searching(x[:n]).score for n in options.batches},
    }  # fmt: skip
    scores, pace = {}, {}
    for name, way in ways.items():
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            scores[name] = torch.as_tensor(way())
            seconds.append(time.perf_counter() - began)
        pace[name] = len(scores[name]) / statistics.median(seconds) * options.steps / 100
    for name in ways:
        same = min(len(scores[name]), options.alone)
        wanted = scores["alone"][:same]
        apart = float(((scores[name][:same] - wanted) / wanted).abs().max())
        times = pace[name] / pace["plain"]
        print(f"{name:<10} {pace[name]:8.2f} images/s per 100 steps, {times:.2f} x plain, scores "
              f"apart by {apart:.1e} of themselves")  # fmt: skip
    if options.output:
        write_json(options.output, {
            "machine": machine, "side": options.side, "width": options.width,
            "steps": options.steps, "images_per_second": pace,
            "ratio": {k: v / pace["plain"] for k, v in pace.items()},
        })  # fmt: skip


if __name__ == "__main__":
    main()
