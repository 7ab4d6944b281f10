"""Is the stated false-alarm rate true? Many random splits of ELPV's normal solar cells.

    python benchmarks/false_alarms.py [--part mono poly] [--splits 50] [--output FILE]

Each split fits PatchCore on --fit-images normal cells, calibrates it at --alpha on the same cells
(cross-conformal, as every fit does), judges all other normal cells and counts the false alarms.
amiss states two intervals in which the realised rate should lie with 95 %: for endlessly many
images (after a fit), and for as many as were judged (in an evaluation); both are checked. The
criterion, at least 90 % of the splits within, is put to the second, which allows for the judged
images being few. `ideal` is what a perfect calibration would reach: below 95 % in the first
interval because a rate on few images spreads wider, above it in the second, whose ends are whole
numbers of images.

What is shared between the splits, to make 50 fits quick: each image is decoded and run through the
network once, and its patch embeddings are kept. The coreset, the folds, the calibration and the
scores of each split are computed anew by the detector's own functions (`_remember`,
`_cross_conformal`, `calibrate`, `_score`). The first split is repeated by `fit` and `predict` on
the files, and must give the same threshold and scores.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import describe, thread_environment, use_cores, versions, write_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from amiss import PatchCore, Record
    from amiss.calibration import Calibration

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
        "versions": versions("amiss", "torch", "timm", "faiss-cpu", "numpy", "elpv-dataset"),
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
    parser.add_argument("--fit-images", type=int, default=200)
    parser.add_argument("--limit", type=int, help="normal cells to use, for a trial")
    parser.add_argument("--size", type=int, default=128, help="input size in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-verify", action="store_true", help="skip the public path")
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    return parser.parse_args()


def judge_part(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """All splits of one kind of cell."""
    import numpy as np

    import amiss

    make = amiss.PatchCore
    import torch

    torch.set_num_threads(options.threads)
    from amiss.data.index import index

    records = [r for r in index(f"elpv:{part}").records if r.label == 0][: options.limit]
    if len(records) <= options.fit_images:
        raise SystemExit(f"{len(records)} normal cells; give a smaller --fit-images.")
    started = time.perf_counter()
    splitter = Splitter(make(image_size=(options.size, options.size)), records, options.alpha)
    embedded = time.perf_counter()
    splits, verified = [], None
    for number in range(options.splits):
        order = np.random.default_rng(number).permutation(len(records))
        fitted, judged = np.sort(order[: options.fit_images]), np.sort(order[options.fit_images :])
        calibration, scores = splitter.run(fitted, judged, number)
        splits.append(outcome(calibration, scores))
        if number == 0 and not options.no_verify:
            verified = splitter.verify(fitted, judged, number, calibration, scores)
        print(f"\r{part}: split {number + 1} of {options.splits}", end="", file=sys.stderr)
    print(file=sys.stderr)
    ideal = ideal_shares(calibration, len(judged))
    return {
        "part": part,
        "normal_cells": len(records),
        "judged_per_split": len(judged),
        **summary(splits),
        "ideal": ideal,
        "verified_against_the_public_path": verified,
        "seconds": {"embeddings": embedded - started, "all": time.perf_counter() - started},
        "splits": splits,
    }


class Splitter:
    """Fits and judges splits of `records` on embeddings that were computed once."""

    def __init__(self, detector: PatchCore, records: list[Record], alpha: float) -> None:
        import numpy as np
        import torch

        from amiss.data.stream import ImageStream
        from amiss.methods.base import Normals
        from amiss.nn.backbone import FeatureExtractor
        from amiss.run import Run

        self.detector, self.records, self.alpha = detector, records, alpha
        config = detector.config
        detector.extractor = FeatureExtractor(
            config.backbone, config.layers, weights=config.weights,
            normalization=config.normalization,
        )  # fmt: skip
        dim, height, width = detector._grid()
        self.embeddings: Tensor = torch.empty(len(records), height * width, dim)
        stream = ImageStream(records, size=detector.image_size, mode=config.resize_mode)
        for indices, patches, _ in detector._embed(
            Normals(stream), np.arange(len(records)), Run()
        ):  # fmt: skip
            self.embeddings[torch.from_numpy(indices)] = patches

    def run(
        self, fitted: np.ndarray[Any, Any], judged: np.ndarray[Any, Any], seed: int
    ) -> tuple[Calibration, np.ndarray[Any, Any]]:
        """What `fit` does after the network, and the scores of the held-out images."""
        import numpy as np

        from amiss.calibration import calibrate
        from amiss.nn.parallel import ImageWorkers
        from amiss.nn.roi import RoiStore
        from amiss.run import Run

        detector, run = self.detector, Run(seed=seed)
        patches = self.embeddings[fitted]
        inside = np.ones(patches.shape[:2], dtype=np.bool_)
        rois = RoiStore(len(fitted), detector.image_size)
        detector._remember(patches.flatten(0, 1), inside.reshape(-1), run)
        held_out = detector._cross_conformal(patches, inside, rois, run)
        calibration = calibrate(
            held_out.scores, held_out.map_maxima, held_out.map_medians,
            max_false_alarm=self.alpha, how=held_out.how,
        )  # fmt: skip
        bank = detector.bank
        assert bank is not None

        def score(i: int) -> float:
            return float(detector._score(bank, self.embeddings[i : i + 1], None).score)

        with ImageWorkers() as workers:
            return calibration, np.array(workers.map(score, judged.tolist()))

    def verify(
        self, fitted: np.ndarray[Any, Any], judged: np.ndarray[Any, Any], seed: int,
        calibration: Calibration, scores: np.ndarray[Any, Any],
    ) -> dict[str, float]:  # fmt: skip
        """The same split by `fit` and `predict` on the files; ends the run where they differ."""
        import numpy as np

        from amiss.run import Run

        train = [dataclasses.replace(self.records[i], split="train") for i in fitted]
        fresh = type(self.detector)(image_size=self.detector.image_size)
        fresh.fit(train, max_false_alarm=self.alpha, run=Run(seed=seed))
        assert fresh.calibration is not None
        some = judged[:: max(1, len(judged) // 40)]
        found = fresh.predict([self.records[i].path for i in some])
        assert isinstance(found, list)
        theirs = np.array([one.score for one in found])
        ours = scores[np.isin(judged, some)]
        difference = float(np.abs(theirs / ours - 1).max())
        threshold = abs(fresh.calibration.threshold / calibration.threshold - 1)
        alarms = [bool(one.is_anomalous) for one in found]
        if max(difference, threshold) > 1e-4 or alarms != (ours > calibration.threshold).tolist():
            raise SystemExit(
                f"The shared embeddings give other results than fit and predict: scores differ by "
                f"{difference:.1e}, thresholds by {threshold:.1e}."
            )
        return {"images": len(some), "largest_relative_difference": difference,
                "threshold_relative_difference": threshold}  # fmt: skip


def outcome(calibration: Calibration, scores: np.ndarray[Any, Any]) -> dict[str, Any]:
    """One split: the realised rate and both stated intervals."""
    rate = float((scores > calibration.threshold).mean())
    long_run, of_these = calibration.expected_rates(), calibration.expected_rates(len(scores))
    return {
        "threshold": calibration.threshold,
        "rate": rate,
        "long_run_interval": list(long_run),
        "interval": list(of_these),
        "in_long_run_interval": long_run[0] <= rate <= long_run[1],
        "in_interval": of_these[0] <= rate <= of_these[1],
    }


def ideal_shares(calibration: Calibration, judged: int) -> dict[str, float]:
    """The share of splits within each interval if the scores were exchangeable, exactly."""
    import numpy as np

    from amiss.calibration import _beta_binomial

    n = len(calibration.scores)
    k = n - int(np.searchsorted(calibration.scores, calibration.threshold, side="right")) + 1
    probability, rates = _beta_binomial(judged, k, n + 1 - k), np.arange(judged + 1) / judged
    shares = {}
    for name, (low, high) in {
        "long_run_interval": calibration.expected_rates(),
        "interval": calibration.expected_rates(judged),
    }.items():
        shares[name] = float(probability[(rates >= low) & (rates <= high)].sum())
    return shares


def summary(splits: list[dict[str, Any]]) -> dict[str, Any]:
    n = len(splits)
    within = sum(split["in_interval"] for split in splits) / n
    return {
        "mean_rate": sum(split["rate"] for split in splits) / n,
        "share_in_interval": within,
        "share_in_long_run_interval": sum(split["in_long_run_interval"] for split in splits) / n,
        "above_interval": sum(split["rate"] > split["interval"][1] for split in splits),
        "below_interval": sum(split["rate"] < split["interval"][0] for split in splits),
        "passed": within >= CRITERION,
    }


def print_table(report: dict[str, Any]) -> None:
    for part in report["parts"]:
        n, first = len(part["splits"]), part["splits"][0]
        print(
            f"ELPV {part['part']}: {n} splits of {part['normal_cells']} normal cells, "
            f"{report['fit_images']} to fit, {part['judged_per_split']} to judge, "
            f"{report['size']} px, {part['seconds']['all']:.0f} s"
        )
        print(f"  asked for                 {report['alpha']:.1%}")
        print(f"  realised, mean            {part['mean_rate']:.2%}")
        for title, key, share in (
            ("for as many images", "interval", "share_in_interval"),
            ("in the long run", "long_run_interval", "share_in_long_run_interval"),
        ):
            low, high = first[key]
            print(
                f"  within {low:.1%} to {high:.1%} {title:20}{part[share]:7.1%}"
                f"   (ideal {part['ideal'][key]:.1%})"
            )
        print(f"  above {part['above_interval']}, below {part['below_interval']} of {n}")
        verified = part["verified_against_the_public_path"]
        if verified:
            print(
                f"  fit and predict on the files: scores of {verified['images']} images agree to "
                f"{verified['largest_relative_difference']:.0e}"
            )
        print(f"  at least {CRITERION:.0%} asked for: {'passed' if part['passed'] else 'FAILED'}")


if __name__ == "__main__":
    main()
