"""Which defaults suit the embedded backbone: PatchCore's options, one at a time, on several sets.

python benchmarks/patchcore_defaults.py --data SET [SET ...] --output FILE

A SET is anything `amiss fit` takes. Prints a Markdown table: image AUROC / pixel AUROC / AU-PRO,
the last two where masks exist; seconds are in the JSON. These sets serve development: defaults are
chosen on them, so their figures are not a fair test of the defaults.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import torch

import amiss
from amiss.data.index import index
from amiss.versions import versions

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "normalization=imagenet": {"normalization": "imagenet"},
    "layers=16": {"layers": ("16",)},
    "layers=8": {"layers": ("8",)},
    "layers=4,8,16": {"layers": ("4", "8", "16")},
    "embedding=adaptive": {"embedding": "adaptive"},
    "neighborhood=1": {"neighborhood": 1},
    "neighborhood=5": {"neighborhood": 5},
    "num_neighbors=1": {"num_neighbors": 1},
    "coreset_ratio=0.1": {"coreset_ratio": 0.1},
    "coreset=random": {"coreset": "random"},
    "projection_dim=64": {"projection_dim": 64},
    "resize=letterbox": {"resize": "letterbox"},
    "image_size=320": {"image_size": (320, 320)},
}


def measure(options: dict[str, Any], dataset: Any) -> dict[str, float]:
    """Fit and judge once."""
    started = time.perf_counter()
    detector = amiss.PatchCore(**options).fit(dataset, max_false_alarm=0.05)
    seconds = time.perf_counter() - started
    report = amiss.evaluate(detector, dataset)
    kept = ("image_auroc", "pixel_auroc", "aupro")
    figures = {name: report.metrics[name] for name in kept if name in report.metrics}
    rate = report.operating_point["false_alarm_rate"]
    recall = report.operating_point["recall"]
    return figures | {"fit_seconds": seconds, "false_alarm_rate": rate, "recall": recall}


def main() -> None:
    """Run all variants on all sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sets = [index(source) for source in args.data]
    rows: dict[str, dict[str, dict[str, float]]] = {}
    print("| options | " + " | ".join(s.name for s in sets) + " |")
    print("|---|" + "---|" * len(sets))
    for variant in args.variants:
        rows[variant] = {s.name: measure(VARIANTS[variant], s) for s in sets}
        cells = []
        for figures in rows[variant].values():
            shown = [figures[k] for k in ("image_auroc", "pixel_auroc", "aupro") if k in figures]
            cells.append(" / ".join(f"{100 * value:.1f}" for value in shown))
        print(f"| {variant} | " + " | ".join(cells) + " |", flush=True)
        gc.collect()
        if args.output is not None:  # after each row: some take long
            facts = {"versions": versions(), "threads": args.threads, "rows": rows}
            args.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
