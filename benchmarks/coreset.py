"""Greedy k-centre on real patch features: amiss against the plain vectorised loop.

    python benchmarks/coreset.py --data FOLDER [--wide] [--output FILE]
    python benchmarks/coreset.py --features FILE.npy [--peer-python PYTHON_WITH_ANOMALIB]

The features are PatchCore's: tf_efficientnet_lite0 at 256 px, strides 8 and 16, 152 values per
patch; with --wide those of a random-weight wide_resnet50_2, 1,536 values per patch. Pictures are
turned and mirrored where a folder has too few of them for --rows.

The loop is timed in the two forms that people write, on the first --iterations of its picks, and
extrapolated to all of them; every pick costs the same. Where the faster form would take no longer
than --full-seconds, it is also run to the end, and its picks and covering radius are compared.
Covering radii are measured apart from both, by brute force, the farthest rows in float64.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import answer, child, describe, peak_mib, read_task, versions, write_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SIZE = 256
START = 0  # the first pick, the same for all
CHOICES = {
    "lite0": ("tf_efficientnet_lite0", "auto"),
    "wide": ("wide_resnet50_2", "random"),
}


def main() -> None:
    task = read_task(sys.argv)
    if task is not None:
        parts: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "features": make_features, "amiss": time_amiss, "loop": time_loop,
            "check": check, "anomalib": time_anomalib,
        }  # fmt: skip
        answer(task, parts[task["part"]](task))
        return
    options = parse()
    report = compare(options)
    print_table(report)
    if options.output:
        write_json(options.output, report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="images to compute features of")
    parser.add_argument("--features", type=Path, help="features (N, D) float32 as .npy instead")
    parser.add_argument("--wide", action="store_true", help="1,536 values per patch")
    parser.add_argument("--rows", type=int, default=200_000, help="at least so many patches")
    parser.add_argument("--limit-train", type=int, help="the first training images by sorted name")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.01, 0.1])
    parser.add_argument("--iterations", type=int, default=100, help="picks that a loop is timed on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--full-seconds", type=float, default=300, help="run the faster loop fully up to this"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-python", help="also time anomalib's sampler, with this Python")
    parser.add_argument(
        "--peer-ratios", nargs="+", type=float, default=[0.01], help="takes minutes at 0.01"
    )
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    if (options.data is None) == (options.features is None):
        parser.error("give either --data or --features")
    return options


# --- the parent ----------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Make the features, then time every implementation in a process of its own."""
    machine = describe(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = options.features or Path(folder, "features.npy")
        source = {"name": path.name}
        if options.features is None:
            source = run("features", options, features=str(path), data=str(options.data),
                         rows=options.rows, limit=options.limit_train,
                         network="wide" if options.wide else "lite0")  # fmt: skip
        results = [one_ratio(options, folder, str(path), ratio) for ratio in options.ratios]
    return {"features": source, "machine": machine, "repeats": options.repeats, "ratios": results}


def one_ratio(
    options: argparse.Namespace, folder: str, features: str, ratio: float
) -> dict[str, Any]:
    """amiss, both loops, the comparison of picks, and the peer where it is asked for."""
    common = {"features": features, "ratio": ratio, "folder": folder, "repeats": options.repeats}
    found = {"amiss": run("amiss", options, **common)}
    for form in LOOPS:
        found[form] = run("loop", options, **common, form=form, iterations=options.iterations)
    faster = min(LOOPS, key=lambda form: found[form]["seconds"])
    compared = faster
    if found[faster]["seconds"] <= options.full_seconds:
        compared = f"{faster}-full"
        found[compared] = run("loop", options, **common, form=faster, iterations=None)
    checked = run("check", options, **common, other=compared)
    if options.peer_python and ratio in options.peer_ratios:
        task = {"part": "anomalib", **common}
        found["anomalib"] = child(options.peer_python, __file__, task, options.threads)
    seconds = found["amiss"]["seconds"]
    return {
        "ratio": ratio,
        "times_faster_than": {k: v["seconds"] / seconds for k, v in found.items() if k != "amiss"},
        "check": checked,
        "runs": found,
    }


def run(part: str, options: argparse.Namespace, **task: Any) -> dict[str, Any]:
    print(f"{part} {task.get('form', '')} {task.get('ratio', '')} ...", file=sys.stderr, flush=True)
    return child(sys.executable, __file__, {"part": part, **task}, options.threads)


def print_table(report: dict[str, Any]) -> None:
    machine, source = report["machine"], report["features"]
    made = f", {source['images']} images, {source['backbone']}" if "images" in source else ""
    print(
        f"features: {source['name']}{made}; {machine['processor']}, {machine['threads']} threads, "
        f"load {machine['load_average'][0]} before, median of {report['repeats']}"
    )
    for one in report["ratios"]:
        rows, dim = one["runs"]["amiss"]["shape"]
        print(f"\n{one['ratio']:.0%} of {rows:,} x {dim} ({one['runs']['amiss']['size']:,} picks)")
        if rows < 200_000:
            print("  fewer rows than the 200,000 that the figures are asked for")
        for name, found in one["runs"].items():
            times = one["times_faster_than"].get(name)
            beside = f"{times:9.1f} x amiss" if times else f"{'':17}"
            how = f"extrapolated from {found['timed']} picks" if "timed" in found else "run fully"
            print(f"  {name:18}{found['seconds']:10.2f} s{beside}   {how}")
        for name, value in one["check"].items():
            print(f"  {name.replace('_', ' '):52}{value}")


# --- features ------------------------------------------------------------------------------


def make_features(task: dict[str, Any]) -> dict[str, Any]:
    """Write the embeddings (N, D) of a folder's training images, as PatchCore computes them."""
    import numpy as np
    import torch

    from amiss.data.index import index
    from amiss.data.stream import ImageStream
    from amiss.nn.backbone import FeatureExtractor
    from amiss.nn.patches import embed_concat

    torch.set_num_threads(task["threads"])
    backbone, weights = CHOICES[task["network"]]
    extractor = FeatureExtractor(backbone, ("8", "16"), weights=weights)
    records = sorted(index(Path(task["data"])).train, key=lambda r: r.path)[: task["limit"]]
    per_image, dim = (SIZE // 8) ** 2, sum(extractor.channels)
    needed = -(-task["rows"] // per_image)
    # Wide features take 6 MiB an image: no more of them than are asked for.
    images = needed if task["network"] == "wide" else max(needed, len(records))
    rows = np.lib.format.open_memmap(
        task["features"], mode="w+", dtype=np.float32, shape=(images * per_image, dim)
    )
    done = 0
    for turn in itertools.count():
        for batch in ImageStream(records, size=(SIZE, SIZE)).batches(8):
            for frame in batch.images[: images - done]:
                with torch.inference_mode():
                    image = torch.from_numpy(turned(frame, turn)).permute(2, 0, 1)[None]
                    patches = embed_concat(extractor(image), neighborhood=3, stride=1)
                    rows[done * per_image : (done + 1) * per_image] = patches[0].flatten(1).T
                done += 1
        if done >= images:
            break
    rows.flush()
    return {
        "name": Path(task["data"]).resolve().name, "backbone": backbone, "weights": weights,
        "images": images, "distinct_pictures": min(images, len(records)), "shape": rows.shape,
    }  # fmt: skip


def turned(frame: np.ndarray[Any, Any], turn: int) -> np.ndarray[Any, Any]:
    """The picture in one of its eight positions; after these, shifted as well."""
    import numpy as np

    position = np.rot90(frame[:, ::-1] if turn & 4 else frame, turn & 3)
    return np.ascontiguousarray(np.roll(position, 29 * (turn // 8), axis=(0, 1)))


def load_rows(task: dict[str, Any]) -> tuple[Tensor, int]:
    """The features and the number of picks."""
    import numpy as np
    import torch

    torch.set_num_threads(task["threads"])
    rows = torch.from_numpy(np.load(task["features"]))
    return rows, max(1, int(task["ratio"] * len(rows)))


def picks_path(task: dict[str, Any], name: str) -> Path:
    return Path(task["folder"], f"{name}-{task['ratio']}.npy")


# --- implementations -----------------------------------------------------------------------


def time_amiss(task: dict[str, Any]) -> dict[str, Any]:
    """The library's own selection, run fully every time."""
    import numpy as np

    import amiss

    _ = amiss.PatchCore  # imports torch the way a user of the library does
    from amiss.memory.coreset import greedy_coreset

    rows, size = load_rows(task)
    loaded = peak_mib()
    seconds = []
    for _ in range(task["repeats"]):
        start = time.perf_counter()
        chosen = greedy_coreset(rows, size, start=START)
        seconds.append(time.perf_counter() - start)
    np.save(picks_path(task, "amiss"), chosen.indices)
    return {
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "shape": list(rows.shape),
        "size": size,
        "stated_radius": chosen.radius,
        "peak_over_features_mib": peak_mib() - loaded,
        "versions": versions("amiss", "torch", "numpy"),
    }


def differences(rows: Tensor) -> Iterator[int]:
    """The loop as it is usually written, anomalib's too: the norm of the differences."""
    import torch

    nearest = torch.full((len(rows),), torch.inf)
    pick = START
    while True:
        yield pick
        distance = torch.linalg.norm(rows - rows[pick], dim=1)
        torch.minimum(nearest, distance, out=nearest)
        nearest[pick] = -1
        pick = int(nearest.argmax())


def matrix_vector(rows: Tensor) -> Iterator[int]:
    """The loop with |x|^2 at hand: |x - c|^2 = |x|^2 - 2 x.c + |c|^2, one product per pick."""
    import torch

    norms = torch.einsum("nd,nd->n", rows, rows)
    nearest = torch.full((len(rows),), torch.inf)
    pick = START
    while True:
        yield pick
        distance = torch.addmv(norms, rows, rows[pick], alpha=-2).add_(norms[pick])
        torch.minimum(nearest, distance, out=nearest)
        nearest[pick] = -torch.inf
        pick = int(nearest.argmax())


LOOPS = {"differences": differences, "matrix-vector": matrix_vector}


def time_loop(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of all picks: measured where `iterations` is None, else extrapolated from a part."""
    import numpy as np

    rows, size = load_rows(task)
    part = min(size, task["iterations"] or size)
    name = task["form"] if task["iterations"] else f"{task['form']}-full"
    seconds, setup = [], []
    for _ in range(task["repeats"] if task["iterations"] else 1):
        loop = LOOPS[task["form"]](rows)
        start = time.perf_counter()
        picks = list(itertools.islice(loop, 2))  # the first step also prepares the norms
        prepared = time.perf_counter()
        picks += itertools.islice(loop, part - len(picks))
        done = time.perf_counter()
        each = (done - prepared) / max(1, part - 2)
        setup.append(prepared - start)
        seconds.append(prepared - start + each * (size - 2))
    np.save(picks_path(task, name), np.array(picks[:part]))
    found = {"seconds": statistics.median(seconds), "all_seconds": seconds,
             "first_step_seconds": statistics.median(setup)}  # fmt: skip
    return found | ({"timed": part} if task["iterations"] else {})


def time_anomalib(task: dict[str, Any]) -> dict[str, Any]:
    """anomalib's KCenterGreedy, once; it projects at random and starts at a random row."""
    import torch
    from anomalib.models.components import KCenterGreedy

    rows, size = load_rows(task)
    torch.manual_seed(0)
    start = time.perf_counter()
    picks = KCenterGreedy(embedding=rows, sampling_ratio=task["ratio"]).select_coreset_idxs()
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "size": size,
        "covering_radius": covering_radius(rows, torch.tensor(picks)),
        "peak_mib": peak_mib(),
        "versions": versions("anomalib", "torch"),
    }


# --- the comparison ------------------------------------------------------------------------


def check(task: dict[str, Any]) -> dict[str, Any]:
    """Picks and covering radii of amiss and of the loop, as far as the loop was run."""
    import numpy as np
    import torch

    rows, size = load_rows(task)
    ours = np.load(picks_path(task, "amiss"))
    theirs = np.load(picks_path(task, task["other"]))
    n = len(theirs)
    differ = np.flatnonzero(ours[:n] != theirs)
    found: dict[str, Any] = {
        "compared_with": f"{task['other']}, {n} picks",
        "equal_picks_before_the_first_that_differs": int(differ[0]) if len(differ) else n,
        "share_of_equal_picks": round(len(np.intersect1d(ours[:n], theirs)) / n, 6),
        "covering_radius_amiss": covering_radius(rows, torch.from_numpy(ours)),
    }
    if n == size:
        radius = covering_radius(rows, torch.from_numpy(theirs))
        found["covering_radius_loop"] = radius
        found["relative_difference"] = abs(found["covering_radius_amiss"] - radius) / radius
    return found


def covering_radius(rows: Tensor, picks: Tensor) -> float:
    """Largest distance of a row to its nearest pick. Float32 finds the farthest rows, about the
    mean so that little is rounded away; float64 measures those."""
    import torch

    mean = rows[:: max(1, len(rows) // 10_000)].mean(0)
    centers = rows[picks] - mean
    nearest = torch.cat([torch.cdist(part - mean, centers).amin(1) for part in rows.split(1024)])
    far = nearest.topk(min(64, len(rows))).indices
    exact = [(rows[picks].double() - rows[i].double()).norm(dim=1).min() for i in far]
    return float(torch.stack(exact).max())


if __name__ == "__main__":
    main()
