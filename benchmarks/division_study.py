"""DAAD's study of its division, made again: how fine blocks may be, and how many items they need.

    python benchmarks/division_study.py --data SET [--rates 1 2 4 8 16 32] [--items 500]
        [--temperatures 1]
        [--set NAME=VALUE ...] [--seeds 0 ...] [--precision P] [--threads N]
        [--figure FILE.png] [--output FILE]

For each rate r, DAAD with `division=r,r,1` learns the same images, and so for each number in
--items and --temperatures where there are several (of the others one). Figures: image AUROC over
all test images, and the gap: the mean reconstruction error of anomalous test images over that of
normal ones, less 1. The picture shows one normal image and one of each kind of anomaly, the first
by name, as each detector makes them again. Every fit is a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import answer, child, describe, peak_mib, read_task, versions, write_json
from PIL import Image, ImageDraw
from sets import options_of

GIVEN: dict[str, Any] = {"image_size": (128, 128), "width": 16, "epochs": 100}
KINDS = 3  # of anomalies, in the picture
SIDE, MARGIN, LINE = 96, 8, 14  # pixels of the picture


def main() -> None:
    task = read_task(sys.argv)
    if task is not None:
        answer(task, fit(task))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--rates", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--items", type=int, nargs="+", default=[500])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0])
    parser.add_argument("--set", nargs="*", default=[], help="options for all, as name=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "machine": describe(options.threads), "data": Path(options.data).name,
        "versions": versions("amiss", "torch", "numpy"), "precision": options.precision,
        "runs": [],
    }  # fmt: skip
    strips = []
    with tempfile.TemporaryDirectory() as folder:
        wanted = itertools.product(
            options.items, options.temperatures, options.rates, options.seeds
        )
        for items, temperature, rate, seed in wanted:
            strip = str(Path(folder, f"{items}-{temperature}-{rate}-{seed}.npy"))
            task = {"data": options.data, "rate": rate, "items": items, "seed": seed,
                    "temperature": temperature, "set": options.set,
                    "precision": options.precision, "strip": strip}  # fmt: skip
            found = child(sys.executable, __file__, task, options.threads)
            report["runs"].append(found)
            print(f"r {rate:>2}  N {items:>4}  T {temperature:<5g} seed {seed}  AUROC "
                  f"{found['image_auroc']:.3f}  gap {found['gap']:+.2f}  error of normal "
                  f"images {found['normal_error']:.4f}  entropy {found['entropy_shares']}  "
                  f"{found['fit_seconds']:.0f} s", flush=True)  # fmt: skip
            if seed == options.seeds[0]:
                name = f"r = {rate}"
                if len(options.items) > 1 or len(options.temperatures) > 1:
                    name = f"N = {items}" if len(options.items) > 1 else f"T = {temperature:g}"
                strips.append((name, found, np.load(strip)))
            if options.output:
                write_json(options.output, report)
        if options.figure:
            picture(strips).save(options.figure)


def fit(task: dict[str, Any]) -> dict[str, Any]:
    """Fit, judge, and keep what is made of some test images."""
    import torch

    import amiss
    from amiss.data.index import index
    from amiss.types import ANOMALOUS, NORMAL

    torch.set_num_threads(task["threads"])
    settings = GIVEN | options_of(amiss.DAAD.config_type, task["set"])
    settings |= {"division": (task["rate"], task["rate"], 1), "items": task["items"],
                 "temperature": task["temperature"]}  # fmt: skip
    dataset = index(task["data"])
    started = time.perf_counter()
    run = amiss.Run(seed=task["seed"], precision=task["precision"])
    detector = amiss.DAAD(**settings).fit(dataset, max_false_alarm=0.05, run=run)
    fitted = time.perf_counter() - started
    report = amiss.evaluate(detector, dataset)
    errors = {
        label: float(np.mean([row.map.mean() for row in report.judged
                              if row.label == label and row.map is not None]))
        for label in (NORMAL, ANOMALOUS)
    }  # fmt: skip
    np.save(task["strip"], remade(detector, dataset))
    return {
        "rate": task["rate"], "items": task["items"],
        "temperature": task["temperature"], "seed": task["seed"],
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
        **report.metrics,
        "gap": errors[ANOMALOUS] / errors[NORMAL] - 1,
        "normal_error": errors[NORMAL], "anomalous_error": errors[ANOMALOUS],
        "entropy_shares": detector.facts["entropy_shares"],
        "fit_seconds": fitted, "peak_mib": peak_mib(), "judged": len(report.judged),
    }  # fmt: skip


def remade(detector: Any, dataset: Any) -> Any:
    """(n, 2, H, W, 3): a normal test image and one of each kind, and what is made of them."""
    import torch

    from amiss.runtime import as_runtime, image_stream

    chosen: dict[str, Any] = {}
    for record in sorted(dataset.test, key=lambda r: r.path):
        chosen.setdefault("" if record.label == 0 else record.kind or "anomalous", record)
    records = [chosen[kind] for kind in sorted(chosen)[: KINDS + 1]]
    (batch,) = image_stream(as_runtime(detector), records).batches(len(records))
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        made = detector.reconstruct(images)
    return np.stack([batch.images, made.permute(0, 2, 3, 1).numpy()], axis=1)


def picture(strips: list[tuple[str, dict[str, Any], Any]]) -> Image.Image:
    """A row for each image: itself, then as it is made again by each detector."""
    count = len(strips[0][2])
    width = MARGIN + (SIDE + MARGIN) * (len(strips) + 1)
    height = 2 * MARGIN + 3 * LINE + (SIDE + MARGIN) * count
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    top = MARGIN + 3 * LINE + MARGIN // 2
    for column, (name, found, strip) in enumerate([("image", None, strips[0][2]), *strips]):
        left = MARGIN + column * (SIDE + MARGIN)
        draw.text((left, MARGIN), name, fill="black")
        if found is not None:
            draw.text((left, MARGIN + LINE), f"AUROC {found['image_auroc']:.3f}", fill="black")
            draw.text((left, MARGIN + 2 * LINE), f"gap {found['gap']:+.2f}", fill="black")
        for row in range(count):
            shown = Image.fromarray(strip[row, 0 if found is None else 1])
            sheet.paste(shown.resize((SIDE, SIDE)), (left, top + row * (SIDE + MARGIN)))
    return sheet


if __name__ == "__main__":
    main()
