"""Autoencoders with and without memories side by side: AUROC, AU-PRO, minutes.

    python benchmarks/reconstruction.py --data SET [SET ...] [--methods NAME ...]
        [--set NAME=VALUE ...] [--limit-train N] [--limit-test N] [--seeds 0 ...] [--threads N]
        [--output FILE]

All learn from the same files with the same size, width, epochs, batches and seeds (SHARED, changed
by --set for all that have the option); what is each one's own is in SIDES. The limits draw that
many images by a fixed seed, half of the test images anomalous. Every fit is a process of its own;
figures are of all test images that were drawn, thresholds ask for 5 % false alarms.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from machine import answer, child, describe, peak_mib, read_task, versions, write_json
from sets import drawn, options_of, title

SHARED: dict[str, Any] = {
    "image_size": (64, 64), "width": 16, "scales": 4, "epochs": 100, "batch_size": 8,
    "learning_rate": 1e-4,
}  # fmt: skip
SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "AE": ("AutoEncoder", {}),
    "AE+skip": ("AutoEncoder", {"skip": True}),
    "MemAE": ("MemAE", {"network": "deep", "query": "position"}),
    "DAAD": ("DAAD", {}),
    "DAAD sharp": ("DAAD", {"temperature": 0.03}),
    "DAAD+": ("DAAD", {"adversarial": True}),
}


def main() -> None:
    task = read_task(sys.argv)
    if task is not None:
        answer(task, fit(task))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", choices=tuple(SIDES), default=list(SIDES))
    parser.add_argument("--set", nargs="*", default=[], help="options for all, as name=value")
    parser.add_argument("--limit-train", type=int)
    parser.add_argument("--limit-test", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "machine": describe(options.threads), "versions": versions("amiss", "torch", "numpy"),
        "precision": options.precision, "limits": [options.limit_train, options.limit_test],
        "sets": {},
    }  # fmt: skip
    for source in options.data:
        name = title(source)
        rows = report["sets"].setdefault(name, {})
        for side in options.methods:
            for seed in options.seeds:
                task = {"data": source, "side": side, "seed": seed, "set": options.set,
                        "limits": report["limits"], "precision": options.precision}  # fmt: skip
                found = child(sys.executable, __file__, task, options.threads)
                rows.setdefault(side, []).append(found)
                shown = [f"{key} {found[key]:.3f}" for key in
                         ("image_auroc", "pixel_auroc", "aupro") if key in found]  # fmt: skip
                print(f"{name}  {side:<11} seed {seed}  {'  '.join(shown)}  "
                      f"{found['fit_seconds'] / 60:.1f} min", flush=True)  # fmt: skip
                if options.output:
                    write_json(options.output, report)


def fit(task: dict[str, Any]) -> dict[str, Any]:
    """Fit and judge one."""
    import torch

    import amiss
    from amiss.data.index import index

    torch.set_num_threads(task["threads"])
    kind, own = SIDES[task["side"]]
    settings = SHARED | own | options_of(getattr(amiss, kind).config_type, task["set"])
    dataset = drawn(index(task["data"]), *task["limits"])
    began = time.perf_counter()
    run = amiss.Run(seed=task["seed"], precision=task["precision"])
    detector = getattr(amiss, kind)(**settings).fit(dataset, max_false_alarm=0.05, run=run)
    fitted = time.perf_counter() - began
    report = amiss.evaluate(detector, dataset)
    point = report.operating_point
    return {
        **report.metrics,
        "interval": report.intervals.get("image_auroc"),
        "false_alarm_rate": point["false_alarm_rate"],
        "recall": point["recall"],
        "entropy": detector.facts.get("entropy_shares", detector.facts.get("entropy_share")),
        "last_losses": {k: v[-1] for k, v in detector.facts["losses"].items()},
        "fit_seconds": fitted,
        "ms_per_image": 1000 * report.seconds["per_image"],
        "peak_mib": peak_mib(),
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
        "seed": task["seed"],
        "judged": len(report.judged),
    }


if __name__ == "__main__":
    main()
