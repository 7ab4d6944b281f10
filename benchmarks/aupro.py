"""Time and memory of the exact AU-PRO: amiss, a plain full sort, and (optional) anomalib.

    python benchmarks/aupro.py [--maps 1000] [--size 256] [--repeats 3] [--output FILE]
                               [--peer-python PYTHON_WITH_ANOMALIB] [--peer-maps 200]

Makes maps with blob-shaped defects from a seed and gives the same files to each implementation, in
a process of its own, so that every peak of memory belongs to one of them. Seconds are the median
of the repeats, without reading the files; the peak includes the maps and the masks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

LIMIT = 0.3
PACKAGES = {"amiss": ["amiss"], "full_sort": ["scipy"], "anomalib": ["anomalib", "torch"]}


def main() -> None:
    """Make the maps, run every implementation in its own process, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-python", help="Python of an environment that has anomalib")
    parser.add_argument("--peer-maps", type=int, default=200, help="maps for the peer")
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # what a child process is to do
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task == "make":
        write_maps(options.folder, options.maps, options.size, options.seed)
    elif options.task:
        print(json.dumps(measure(options.task, options.folder, options.maps, options.repeats)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """The parent. It loads nothing itself, as a child may inherit its parent's peak."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        shape = [f"--folder={folder}", f"--size={options.size}", f"--seed={options.seed}"]
        child(sys.executable, ["--task=make", f"--maps={options.maps}", *shape])
        shape.append(f"--repeats={options.repeats}")
        for task in ("amiss", "full_sort"):
            runs.append(child(sys.executable, [f"--task={task}", f"--maps={options.maps}", *shape]))
        if options.peer_python:
            few = [f"--maps={min(options.maps, options.peer_maps)}", *shape]
            runs.append(child(sys.executable, ["--task=amiss", *few]))
            runs.append(child(options.peer_python, ["--task=anomalib", *few]))
    print(f"{'':12}{'maps':>6}{'AU-PRO':>20}{'seconds':>10}{'peak MiB':>10}{'loaded MiB':>12}")
    for run in runs:
        print(
            f"{run['name']:12}{run['maps']:6}{run['aupro']:20.15f}{run['seconds']:10.2f}"
            f"{run['peak_mib']:10.0f}{run['loaded_mib']:12.0f}"
        )
    difference = abs(runs[0]["aupro"] - runs[1]["aupro"])
    print(f"|amiss - full sort| = {difference:.1e}")
    if options.output:
        machine = {"processor": processor(), "system": platform.system(), "cores": cores()}
        report = {"limit": LIMIT, "size": options.size, "seed": options.seed}
        report |= {"repeats": options.repeats, "machine": machine, "runs": runs}
        report |= {"difference_to_full_sort": difference}
        options.output.write_text(json.dumps(report, indent=2) + "\n")


def child(python: str, arguments: list[str]) -> dict[str, Any]:
    """Run this file in a fresh process; its standard output is one JSON object, or empty."""
    command = [python, __file__, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else {}


def write_maps(folder: Path, maps: int, size: int, seed: int) -> None:
    """Smooth noise as a detector's map; every second image has one to three soft blobs.

    A blob's mask is where a smooth field is high near a random centre. The map answers to it
    shifted, blurred and with a strength of its own, so that detection is good but not perfect.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    coarse = 12

    def smooth(cells: int) -> np.ndarray[Any, Any]:
        """A field (size, size): noise on a grid of cells x cells, bilinear in between."""
        place = np.linspace(0, cells - 1, size)
        weight = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells)))  # (size, cells)
        return weight @ random.standard_normal((cells, cells)) @ weight.T

    row, column = np.mgrid[0:size, 0:size] / size
    scores = np.lib.format.open_memmap(
        folder / "maps.npy", mode="w+", dtype=np.float32, shape=(maps, size, size)
    )
    masks = np.lib.format.open_memmap(
        folder / "masks.npy", mode="w+", dtype=np.bool_, shape=(maps, size, size)
    )
    for index in range(maps):
        field = 1.0 + 0.25 * smooth(coarse) + 0.02 * random.standard_normal((size, size))
        mask = np.zeros((size, size), dtype=bool)
        for _ in range(random.integers(1, 4) if index % 2 else 0):
            y, x = random.uniform(0.1, 0.9, 2)
            radius = random.uniform(0.02, 0.13)
            blob = np.exp(-((row - y) ** 2 + (column - x) ** 2) / radius**2)
            mask |= blob + 0.15 * smooth(coarse) > 0.5
            shift = random.normal(0.0, radius / 4, 2)
            away = (row - y - shift[0]) ** 2 + (column - x - shift[1]) ** 2
            field += random.uniform(0.2, 1.5) * np.exp(-away / (1.4 * radius) ** 2)
        scores[index], masks[index] = field, mask


def measure(name: str, folder: Path, maps: int, repeats: int) -> dict[str, Any]:
    """A child: load the maps, run one implementation, return value, seconds and peak memory."""
    run = {"amiss": with_amiss, "full_sort": with_full_sort, "anomalib": with_anomalib}[name]()
    scores, masks = (
        first_images(folder / "maps.npy", maps),
        first_images(folder / "masks.npy", maps),
    )
    loaded = peak_mib()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = run(scores, masks)
        seconds.append(time.perf_counter() - start)
    return {
        "name": name,
        "versions": versions("numpy", *PACKAGES[name]),
        "maps": maps,
        "aupro": value,
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "peak_mib": peak_mib(),
        "loaded_mib": loaded,  # the peak before the first run: imports, maps and masks
        "input_mib": (scores.nbytes + masks.nbytes) / 2**20,
    }


def first_images(path: Path, count: int) -> np.ndarray[Any, Any]:
    """The first arrays of a .npy file; nothing else of it is read or mapped, to keep peaks true."""
    import numpy as np

    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        (_, H, W), _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.fromfile(file, dtype=dtype, count=count * H * W).reshape(count, H, W)


def with_amiss() -> Callable[..., float]:
    from amiss.metrics import aupro

    return lambda scores, masks: aupro(scores, masks, LIMIT)


def with_full_sort() -> Callable[..., float]:
    """The definition, written down: sort every pixel, cumulate, keep the last of each tie."""
    import numpy as np
    from scipy import ndimage

    def run(scores: np.ndarray[Any, Any], masks: np.ndarray[Any, Any]) -> float:
        gain = np.zeros(scores.shape, dtype=np.float64)
        regions = 0
        for index, mask in enumerate(masks):
            labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
            area = np.bincount(labels.ravel(), minlength=count + 1).astype(np.float64)
            gain[index] = np.where(labels > 0, 1 / area[labels], 0)
            regions += count
        order = np.argsort(scores, axis=None)[::-1]
        ranked = scores.ravel()[order]
        fpr = np.cumsum(~masks.ravel()[order]) / np.count_nonzero(~masks)
        pro = np.cumsum(gain.ravel()[order]) / regions
        last = np.append(ranked[1:] != ranked[:-1], True)
        fpr, pro = np.append(0.0, fpr[last]), np.append(0.0, pro[last])
        inside = fpr <= LIMIT
        at_limit = np.interp(LIMIT, fpr, pro)
        fpr, pro = np.append(fpr[inside], LIMIT), np.append(pro[inside], at_limit)
        return float((np.diff(fpr) * (pro[1:] + pro[:-1])).sum() / 2 / LIMIT)

    return run


def with_anomalib() -> Callable[..., float]:
    from types import SimpleNamespace

    import torch
    from anomalib.metrics import AUPRO

    def run(scores: np.ndarray[Any, Any], masks: np.ndarray[Any, Any]) -> float:
        metric = AUPRO(fields=["anomaly_map", "gt_mask"], fpr_limit=LIMIT)
        metric.update(
            SimpleNamespace(
                anomaly_map=torch.from_numpy(scores), gt_mask=torch.from_numpy(masks).int()
            )
        )
        return float(metric.compute())

    return run


def versions(*names: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def peak_mib() -> float:
    """The largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def cores() -> int:
    import os

    return os.cpu_count() or 1


if __name__ == "__main__":
    main()
