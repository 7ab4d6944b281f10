"""The family of GANs side by side on one class of MNIST or the like: AUROC, pace, minutes.

    python benchmarks/gan_family.py --data FOLDER [--digits 0 3 8] [--train N] [--test N]
        [--methods NAME ...] [--threads N] [--output FILE]

FOLDER is one that `one_class:K:FOLDER` reads. All methods learn from the same --train images of the
class (a fifth of them held out for the threshold) and judge the same --test images, half of them of
the class, at 32 px in grey, with one seed; each in a process of its own. f-AnoGAN's generator
is trained once and shared by its three encoders and by the critic's score, as the method allows.
Networks are half as wide as the papers', f-AnoGAN's residual ones a quarter, to be trained on a CPU
in minutes; EGBAD and the encoder of f-AnoGAN learn at rates of 20 and 10 times their papers', for
they see a thousandth of their images. SETTINGS has all of it, and the report repeats it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import answer, child, describe, peak_mib, read_task, versions, write_json
from sets import drawn

GRAY: dict[str, Any] = {"image_size": (32, 32), "colors": "gray"}
FANOGAN = {**GRAY, "width": 16, "epochs": 40, "encoder_epochs": 40, "encoder_learning_rate": 5e-4}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ganomaly": ("GANomaly", {**GRAY, "width": 32, "epochs": 15}),
    "egbad": ("EGBAD", {**GRAY, "network": "deep", "width": 32, "learning_rate": 2e-4,
                        "average": 0.99, "epochs": 100}),
    "dcgan": ("DCGAN", {**GRAY, "width": 32, "epochs": 40}),
    "wgan": ("WGAN", {**GRAY, "width": 32, "epochs": 40, "n_critic": 5}),
    "fanogan izi_f": ("FAnoGAN", FANOGAN),
    "fanogan izi": ("FAnoGAN", {**FANOGAN, "encoder_training": "izi", "score": "izi"}),
    "fanogan ziz": ("FAnoGAN", {**FANOGAN, "encoder_training": "ziz"}),
    "fanogan latent": ("FAnoGAN", {**FANOGAN, "score": "latent"}),
    "critic": ("FAnoGAN", {**FANOGAN, "score": "critic"}),
    "anogan": ("AnoGAN", {**GRAY, "width": 32, "epochs": 40}),
}  # fmt: skip


def main() -> None:
    task = read_task(sys.argv)
    if task is not None:
        answer(task, fit(task))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--digits", type=int, nargs="+", default=[0, 3, 8])
    parser.add_argument("--train", type=int, default=1200)
    parser.add_argument("--test", type=int, default=400)
    parser.add_argument("--methods", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "machine": describe(options.threads), "train": options.train, "test": options.test,
        "versions": versions("amiss", "torch", "numpy"), "precision": options.precision,
        "digits": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for digit in options.digits:
            rows = report["digits"].setdefault(str(digit), {})
            for name in options.methods:
                task = {"data": str(options.data), "digit": digit, "name": name, "folder": folder,
                        "train": options.train, "test": options.test,
                        "precision": options.precision}  # fmt: skip
                rows[name] = found = child(sys.executable, __file__, task, options.threads)
                print(f"{digit}  {name:<16} AUROC {found['image_auroc']:.3f}  alone "
                      f"{found['one_by_one_ms']:.1f} ms, of a set {found['ms_per_image']:.2f} ms, "
                      f"{found['training_minutes']:.1f} min", flush=True)  # fmt: skip
                if options.output:
                    write_json(options.output, report)


def fit(task: dict[str, Any]) -> dict[str, Any]:
    """Fit and judge one method on one class."""
    import torch

    import amiss
    from amiss.data.index import index

    torch.set_num_threads(task["threads"])
    kind, settings = SETTINGS[task["name"]]
    whole = index(f"one_class:{task['digit']}:{task['data']}")
    dataset = drawn(whole, task["train"], task["test"])
    # What is left of a generator's training there, the next encoder goes on from.
    run = amiss.Run(
        precision=task["precision"], say=lambda sentence: print(sentence, file=sys.stderr),
        partial=Path(task["folder"]) / f"{kind}-{task['digit']}",
    )  # fmt: skip
    started = time.perf_counter()
    detector = getattr(amiss, kind)(**settings).fit(dataset, max_false_alarm=0.05, run=run)
    fitted = time.perf_counter()
    report = amiss.evaluate(detector, dataset)
    judged = time.perf_counter() - fitted
    paths = [r.path for r in dataset.test][:3]
    detector.predict(paths[0])
    began = time.perf_counter()
    for path in paths:
        detector.predict(path)
    alone = (time.perf_counter() - began) / len(paths)
    point = report.operating_point
    return {
        "image_auroc": report.metrics["image_auroc"],
        "interval": report.intervals["image_auroc"],
        "false_alarm_rate": point["false_alarm_rate"],
        "recall": point["recall"],
        "training_minutes": (fitted - started) / 60,
        "training_seconds": detector.facts["training_seconds"],
        "ms_per_image": 1000 * judged / len(report.judged),
        "one_by_one_ms": 1000 * alone,
        "sample_diversity": detector.facts.get("sample_diversity"),
        "peak_mib": peak_mib(),
        "settings": settings,
        "judged": len(report.judged),
    }


if __name__ == "__main__":
    main()
