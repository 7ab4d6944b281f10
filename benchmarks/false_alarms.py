"""Is the stated false-alarm rate true? Many random splits of ELPV's normal solar cells.

    python benchmarks/false_alarms.py [--part mono poly] [--splits 50] [--output FILE]

Each split fits PatchCore on --fit-images normal cells drawn at random, which also sets the
threshold for --alpha (cross-conformal, as in every fit), and evaluates all other normal cells.
amiss states two intervals in which the realised rate should lie with 95 %: the Beta interval of
the rate over endlessly many images (after a fit), and the beta-binomial one of the rate over as
many as were judged (in an evaluation). Both are checked; the criterion, at least 90 % of the
splits within, is put to the second, since a rate over few images spreads wider than the first
allows for. `ideal` is what a calibration without any flaw would reach.

Everything runs by `fit` and `evaluate` on the files. One thing is shared between the splits to make
50 of them quick: the network's feature maps of an image are kept, by its pixels, and looked up the
next time (`KeptMaps`). The first split is run without this as well, and must agree.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from machine import describe, thread_environment, use_cores, versions, write_json

if TYPE_CHECKING:
    from amiss import Record

CRITERION = 0.9


def main() -> None:
    options = parse()
    os.environ.update(thread_environment(options.threads))  # before torch is loaded
    machine = describe(options.threads)
    use_cores(options.threads)
    report: dict[str, Any] = {
        "alpha": options.alpha,
        "fit_images": options.fit_images,
        "size": options.size,
        "machine": machine,
        "parts": [judge_part(part, options) for part in options.part],
        "versions": versions("amiss", "torch", "faiss-cpu", "numpy", "elpv-dataset"),
    }
    print_table(report)
    if options.output:
        write_json(options.output, report)
    if not all(part["passed"] for part in report["parts"]):
        sys.exit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=("mono", "poly"), default=["mono"])
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--fit-images", type=int, default=100)
    parser.add_argument("--limit", type=int, help="normal cells to use, for a trial")
    parser.add_argument("--size", type=int, default=128, help="input size in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    return parser.parse_args()


def judge_part(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """All splits of one kind of cell."""
    import amiss

    _ = amiss.PatchCore  # imports torch the way a user of the library does
    import torch

    torch.set_num_threads(options.threads)
    from amiss.data.index import index

    records = [r for r in index(f"elpv:{part}").records if r.label == 0][: options.limit]
    if len(records) <= options.fit_images:
        raise SystemExit(f"{len(records)} normal cells; give a smaller --fit-images.")
    started = time.perf_counter()
    whole = one_split(*halves(records, 0, options), 0, options)
    splits: list[dict[str, Any]] = []
    with kept_maps():
        for number in range(options.splits):
            splits.append(one_split(*halves(records, number, options), number, options))
            print(f"\r{part}: split {number + 1} of {options.splits}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {
        "part": part,
        "normal_cells": len(records),
        **summary(splits, options.alpha),
        "kept_maps_change_scores_by": agreement(splits[0], whole),
        "seconds": time.perf_counter() - started,
        "splits": [{k: v for k, v in split.items() if k != "scores"} for split in splits],
    }


def halves(
    records: list[Record], seed: int, options: argparse.Namespace
) -> tuple[list[Record], list[Record]]:
    """What one split learns from, and what it judges."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(records))
    fitted, judged = np.sort(order[: options.fit_images]), np.sort(order[options.fit_images :])
    return (
        [dataclasses.replace(records[i], split="train") for i in fitted],
        [dataclasses.replace(records[i], split="test") for i in judged],
    )


def one_split(
    train: list[Record], test: list[Record], seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Fit, evaluate, and how the realised rate lies in what was stated."""
    import amiss

    detector = amiss.PatchCore(image_size=(options.size, options.size))
    detector.fit(train, max_false_alarm=options.alpha, run=amiss.Run(seed=seed))
    report = amiss.evaluate(detector, test)
    point, calibration = report.operating_point, detector.calibration
    assert calibration is not None
    rate, of_these = point["false_alarm_rate"], point["false_alarm_interval"]
    long_run = calibration.expected_rates()
    return {
        "threshold": calibration.threshold,
        "n_calibration": len(calibration.scores),
        "n_judged": point["n_normal"],  # fewer than were given where a file is in both halves
        "rate": rate,
        "long_run_interval": list(long_run),
        "interval": list(of_these),
        "in_long_run_interval": long_run[0] <= rate <= long_run[1],
        "in_interval": of_these[0] <= rate <= of_these[1],
        "scores": report.scores,
    }


@contextmanager
def kept_maps() -> Iterator[None]:
    """Inside, an image that was seen before does not go through the network again."""
    from torch import Tensor, cat

    from amiss.methods import patchcore
    from amiss.nn.backbone import FeatureExtractor

    kept: dict[bytes, list[Tensor]] = {}

    class KeptMaps(FeatureExtractor):
        """The same network, run once per picture."""

        def forward(self, images: Tensor) -> list[Tensor]:
            maps = []
            for image in images.split(1):
                key = hashlib.blake2b(image.contiguous().numpy().tobytes()).digest()
                if key not in kept:
                    kept[key] = super().forward(image)
                maps.append(kept[key])
            return [cat(layer) for layer in zip(*maps, strict=True)]

    with mock.patch.object(patchcore, "FeatureExtractor", KeptMaps):
        yield


def agreement(kept: dict[str, Any], whole: dict[str, Any]) -> float:
    """Largest relative difference of threshold and scores with and without the kept maps."""
    import numpy as np

    ours = np.append(kept["scores"], kept["threshold"])
    theirs = np.append(whole["scores"], whole["threshold"])
    worst = float(np.abs(ours / theirs - 1).max())
    if worst > 1e-4 or kept["rate"] != whole["rate"]:
        raise SystemExit(f"With kept feature maps scores differ by {worst:.1e}: not the same run.")
    return worst


def ideal_shares(split: dict[str, Any], alpha: float) -> dict[str, float]:
    """The share of splits within each interval if all scores were exchangeable, by the
    beta-binomial distribution of the number of false alarms."""
    from scipy.stats import betabinom  # type: ignore[import-untyped]

    n, m = split["n_calibration"], split["n_judged"]
    k = max(1, int(alpha * (n + 1) + 1e-9))
    shares = {}
    for name in ("long_run_interval", "interval"):
        low, high = split[name]
        within = [j for j in range(m + 1) if low <= j / m <= high]
        shares[name] = float(betabinom.pmf(within, m, k, n + 1 - k).sum())
    return shares


def summary(splits: list[dict[str, Any]], alpha: float) -> dict[str, Any]:
    """The shares of splits within the intervals."""
    n = len(splits)
    within = sum(split["in_interval"] for split in splits) / n
    return {
        "mean_rate": sum(split["rate"] for split in splits) / n,
        "share_in_interval": within,
        "share_in_long_run_interval": sum(split["in_long_run_interval"] for split in splits) / n,
        "ideal": ideal_shares(splits[0], alpha),
        "above_interval": sum(split["rate"] > split["interval"][1] for split in splits),
        "below_interval": sum(split["rate"] < split["interval"][0] for split in splits),
        "passed": within >= CRITERION,
    }


def print_table(report: dict[str, Any]) -> None:
    """One paragraph per kind of cell."""
    for part in report["parts"]:
        n, first = len(part["splits"]), part["splits"][0]
        print(
            f"ELPV {part['part']}: {n} splits of {part['normal_cells']} normal cells, "
            f"{report['fit_images']} to fit, {first['n_judged']} to judge, "
            f"{report['size']} px, {part['seconds']:.0f} s"
        )
        print(
            f"  asked for: at most {report['alpha']:.1%}; realised, mean: {part['mean_rate']:.2%}"
        )
        for title, key, share in (
            ("as stated for these images (beta-binomial)", "interval", "share_in_interval"),
            ("as stated in the long run (Beta)", "long_run_interval", "share_in_long_run_interval"),
        ):
            low, high = first[key]
            print(
                f"  {low:5.1%} to {high:5.1%}, {title:44}{part[share]:6.1%} of the splits within "
                f"(ideal {part['ideal'][key]:.1%})"
            )
        print(f"  above {part['above_interval']}, below {part['below_interval']} of {n}")
        print(f"  kept feature maps change scores by {part['kept_maps_change_scores_by']:.0e}")
        print(f"  at least {CRITERION:.0%} asked for: {'passed' if part['passed'] else 'FAILED'}")


if __name__ == "__main__":
    main()
