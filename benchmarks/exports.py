"""What exporting costs and brings, for every target and precision: size, latency, AUROC.

python benchmarks/exports.py --data SET [SET ...] [--limit-train N] [--output FILE]

A SET is anything `amiss fit` takes with labelled test images. PatchCore with its defaults is
fitted, exported in every way, and each file is judged on the same test images. Latency: `predict`
of one uint8 array, decision, regions and map included, the median of 50. Cold start: a fresh
`amiss predict FILE IMAGE`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import answer, child, describe, load_average, read_task, versions, write_json

TARGETS = {"onnx": ".onnx", "openvino": ".xml"}
PRECISIONS = ("fp32", "fp16", "int8")
METRICS = ("image_auroc", "pixel_auroc", "aupro")
RUNS = 50
PACKAGES = ("amiss", "torch", "onnxruntime", "openvino", "numpy", "pillow")


def main() -> None:
    """Run a process per data set, print a table each."""
    task = read_task(sys.argv)
    if task is not None:
        answer(task, measure(task))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--limit-train", type=int, help="the first training normals by name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": describe(options.threads), "versions": {}, "sets": {}}
    for source in options.data:
        found = child(
            sys.executable, __file__, {"data": source, "limit": options.limit_train},
            options.threads,
        )  # fmt: skip
        report["versions"] = found.pop("versions")
        report["sets"][found["name"]] = found
        print_table(found)
    report["machine"]["load_average_after"] = load_average()
    if options.output:
        write_json(options.output, report)


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Fit, export in every way, judge."""
    import amiss
    from amiss.data.index import index
    from amiss.errors import AmissError
    from amiss.export import export

    dataset = index(task["data"])
    training = [r for r in dataset.records if r.split == "train" and r.label == 0]
    detector = amiss.PatchCore().fit(training[: task["limit"]] if task["limit"] else dataset)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path = detector.save(Path(folder, "part.amiss"))
        rows["torch"] = judge(path, dataset)
        for (to, suffix), precision in itertools.product(TARGETS.items(), PRECISIONS):
            path = Path(folder, f"part-{precision}{suffix}")
            labelled = dataset if precision == "int8" else None
            try:
                done = export(detector, path, to=to, precision=precision, data=labelled)
            except AmissError as error:
                rows[f"{to} {precision}"] = {"refused": str(error)}
                continue
            rows[f"{to} {precision}"] = judge(path, dataset) | {
                "parity": done.parity.as_dict(), "drift": done.drift, "size_mib": done.size_mib,
            }  # fmt: skip
    return {"name": dataset.name, "rows": rows, "versions": versions(*PACKAGES)}


def judge(path: Path, dataset: Any) -> dict[str, Any]:
    """Metrics, latency and cold start of one file."""
    import numpy as np
    from PIL import Image

    import amiss

    detector = amiss.load(path)
    report = amiss.evaluate(detector, dataset)
    test = [record.path for record in dataset.records if record.split == "test"]
    files = test[:: max(1, len(test) // 8)]
    size = (256, 256)
    arrays = [np.array(Image.open(f).convert("RGB").resize(size)) for f in files[:8]]
    times = []
    for number in range(10 + RUNS):
        start = time.perf_counter()
        detector.predict(arrays[number % len(arrays)])
        times.append(1000 * (time.perf_counter() - start))
    cold = []
    for _ in range(5):
        start = time.perf_counter()
        command = [sys.executable, "-m", "amiss", "predict", str(path), str(files[0])]
        subprocess.run(command, check=True, capture_output=True, env=os.environ)
        cold.append(time.perf_counter() - start)
    return {
        **{name: report.metrics[name] for name in METRICS if name in report.metrics},
        "false_alarm_rate": report.operating_point["false_alarm_rate"],
        "recall": report.operating_point["recall"],
        "latency_ms": statistics.median(times[10:]),
        "cold_start_s": statistics.median(cold),
        "size_mib": path.stat().st_size / 2**20,
    }


def print_table(found: dict[str, Any]) -> None:
    names = [*METRICS, "false_alarm_rate", "recall", "latency_ms", "cold_start_s", "size_mib"]
    print(f"{found['name']:16}" + "".join(f"{name:>17}" for name in names))
    for title, row in found["rows"].items():
        if "refused" in row:
            print(f"{title:16}refused: {row['refused']}")
            continue
        cells = (f"{row[name]:17.4f}" if name in row else f"{'':17}" for name in names)
        print(f"{title:16}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
