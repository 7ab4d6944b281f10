"""Every method on the same files: quality, seconds, memory; one process per fit.

    python benchmarks/methods.py --data SET [SET ...] [--methods patchcore padim ...]
        [--misalign] [--seeds 0 1 2] [--set NAME=VALUE ...] [--precision P] [--output FILE]

A SET is anything `amiss fit` takes with labelled test images. With --misalign every image of a
folder in the layout of MVTec AD, its mask alike, is first turned by up to 15 degrees and shifted by
up to 5 % of its size, at random by its name: what stands aligned is aligned no more.

Figures are over all test images, thresholds ask for 5 % false alarms. `all` are the means over the
seeds; a method's options here are its defaults, but for those in OPTIONS, which are printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from machine import answer, child, describe, peak_mib, read_task, versions, write_json
from sets import options_of, title

OPTIONS: dict[str, dict[str, Any]] = {"spade": {"num_images": 5}}
CLASSES = {
    "patchcore": "PatchCore", "padim": "PaDiM", "spade": "SPADE", "fyd": "FYD",
    "uninformed_students": "UninformedStudents", "mkd": "MKD", "dcgan": "DCGAN", "wgan": "WGAN",
    "wgan_gp": "WGANGP", "anogan": "AnoGAN", "egbad": "EGBAD", "ganomaly": "GANomaly",
    "fanogan": "FAnoGAN", "autoencoder": "AutoEncoder", "memae": "MemAE", "daad": "DAAD",
    "nfad": "NFAD", "bgad": "BGAD",
}  # fmt: skip
MAX_DEGREES, MAX_SHIFT = 15.0, 0.05
PACKAGES = ("amiss", "torch", "numpy", "pillow")


def main() -> None:
    task = read_task(sys.argv)
    if task is not None:
        answer(task, fit(task))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", choices=tuple(CLASSES), default=list(CLASSES))
    parser.add_argument("--set", nargs="*", default=[], help="options for all, as name=value")
    parser.add_argument("--limit-train", type=int, help="the first training images by name")
    parser.add_argument("--misalign", action="store_true")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--precision", default="32-true", help="of methods that train")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": describe(options.threads), "sets": {}}
    for source in options.data:
        with tempfile.TemporaryDirectory() as folder:
            data = misaligned(Path(source), Path(folder)) if options.misalign else source
            name = title(source) + (" misaligned" if options.misalign else "")
            report["sets"][name] = compare(str(data), options)
        print_table(name, report["sets"][name])
    if options.output:
        write_json(options.output, report)


def compare(data: str, options: argparse.Namespace) -> dict[str, Any]:
    """All methods with all seeds on one set."""
    found: dict[str, Any] = {}
    for method in options.methods:
        runs = []
        for seed in options.seeds:
            print(f"{method}, seed {seed} ...", file=sys.stderr, flush=True)
            task = {"data": data, "method": method, "seed": seed, "set": options.set,
                    "limit": options.limit_train, "precision": options.precision}  # fmt: skip
            runs.append(child(sys.executable, __file__, task, options.threads))
        numbers = [k for k, v in runs[0].items() if isinstance(v, int | float)]
        found[method] = {
            "options": runs[0]["options"],
            "all": {k: statistics.mean(run[k] for run in runs if k in run) for k in numbers},
            "runs": runs,
        }
    return found


def fit(task: dict[str, Any]) -> dict[str, Any]:
    """Fit, judge, and time one image."""
    from dataclasses import replace

    import torch

    import amiss
    from amiss.data.index import index

    torch.set_num_threads(task["threads"])
    kind = getattr(amiss, CLASSES[task["method"]])
    options = OPTIONS.get(task["method"], {}) | options_of(kind.config_type, task["set"])
    dataset = index(task["data"])
    if task["limit"]:
        kept = {r.path for r in sorted(dataset.train, key=lambda r: r.path)[: task["limit"]]}
        records = tuple(r for r in dataset.records if r.split != "train" or r.path in kept)
        dataset = replace(dataset, records=records)
    start = time.perf_counter()
    run = amiss.Run(seed=task["seed"], precision=task["precision"])
    detector = kind(**options).fit(dataset, max_false_alarm=0.05, run=run)
    fitted = time.perf_counter()
    report = amiss.evaluate(detector, dataset)
    evaluated, peak = time.perf_counter(), peak_mib()
    path = next(r.path for r in dataset.test)
    milliseconds = []
    for _ in range(12):
        began = time.perf_counter()
        detector.predict(path)
        milliseconds.append(1000 * (time.perf_counter() - began))
    point = report.operating_point
    return {
        **report.metrics,
        "false_alarm_rate": point["false_alarm_rate"],
        "recall": point["recall"],
        "fit_seconds": fitted - start,
        "evaluation_seconds": evaluated - fitted,
        "seconds_per_image": report.seconds["per_image"],
        "one_file_ms": statistics.median(milliseconds[2:]),
        "peak_mib": peak,
        "options": options,
        "precision": task["precision"],
        "judged": len(report.judged),
        "versions": versions(*PACKAGES),
    }


def misaligned(source: Path, target: Path) -> Path:
    """A copy of a folder in which every image, with its mask, is turned and shifted."""
    import numpy as np
    from PIL import Image

    for path in sorted(p for p in source.rglob("*") if p.suffix.lower() in (".png", ".jpg")):
        place = path.relative_to(source)
        # The mask of an image moves as the image does.
        key = place.as_posix().replace("ground_truth/", "test/").replace("_mask", "")
        random = np.random.default_rng(zlib.crc32(Path(key).with_suffix("").as_posix().encode()))
        angle = random.uniform(-MAX_DEGREES, MAX_DEGREES)
        shares = random.uniform(-MAX_SHIFT, MAX_SHIFT, 2)
        with Image.open(path) as image:
            is_mask = "ground_truth" in place.parts
            pixels = image.convert("L" if is_mask else "RGB")
        shift = (shares[0] * pixels.width, shares[1] * pixels.height)
        moved = rotated(pixels, angle, shift, is_mask=is_mask)
        out = target / place.with_suffix(".png")
        out.parent.mkdir(parents=True, exist_ok=True)
        moved.save(out)
    return target


def rotated(image: Any, angle: float, shift: tuple[float, float], *, is_mask: bool) -> Any:
    """Turned about the centre; images are continued by reflection, masks by nothing."""
    import numpy as np
    from PIL import Image

    array = np.asarray(image)
    margin = max(array.shape[:2]) // 3
    edges = ((margin, margin), (margin, margin), (0, 0))[: array.ndim]
    padded = np.pad(array, edges, mode="constant" if is_mask else "reflect")
    how = Image.Resampling.NEAREST if is_mask else Image.Resampling.BICUBIC
    turned = Image.fromarray(padded).rotate(angle, resample=how, translate=shift)
    return turned.crop((margin, margin, margin + image.width, margin + image.height))


def print_table(name: str, found: dict[str, Any]) -> None:
    """One row per method."""
    print(f"\n{name}")
    print("| method | image AUROC | pixel AUROC | AU-PRO | fit, s | s per image | peak, MiB |")
    print("|---|---|---|---|---|---|---|")
    for method, one in found.items():
        figures = one["all"]
        cells = [f"{figures[k]:.4f}" if k in figures else "" for k in
                 ("image_auroc", "pixel_auroc", "aupro")]  # fmt: skip
        cells += [f"{figures['fit_seconds']:.1f}", f"{figures['seconds_per_image']:.3f}",
                  f"{figures['peak_mib']:.0f}"]  # fmt: skip
        extra = "".join(f" {k}={v}" for k, v in one["options"].items())
        print(f"| {method}{extra} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
