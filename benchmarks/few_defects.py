"""What a few known defects are worth: PatchCore, NFAD and BGAD on the same test images.

    python benchmarks/few_defects.py --data SET [SET ...] [--methods NAME ...] [--known 1 5 10]
        [--protocols multi_class one_class] [--draws 0 1 2] [--set NAME=VALUE ...]
        [--limit-train N] [--limit-test N] [--threads N] [--output FILE]

Which images are known is drawn anew for each draw, which is the seed of the fits as well; with
`one_class` they are of one kind, the draw's number among the kinds by name, and sets without kinds
are passed over. Known images, and with `one_class` all of their kind, are judged by nobody. A
method that learns from none is fitted once for each draw and judged on all these tests. The limits
draw that many images by a fixed seed, half of the test images anomalous. `bgad_none`,
`bgad_perlin` and `bgad_cut_paste` are BGAD with other generators of defects, `bgad_nearest` labels
cells as the authors' code does, and in `bgad_unpushed` the defects say nothing: NFAD in as many
steps. Settings: FLOW, BOUNDARY, and the defaults. Every fit is a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from machine import answer, child, describe, peak_mib, read_task, versions, write_json
from sets import drawn, options_of, title

FLOW: dict[str, Any] = {
    "layers": ("8", "16", "32"), "epochs": 20, "cell_share": 0.1, "vectors": 1024,
    "learning_rate": 2e-3, "standardize": True,
}  # fmt: skip
BOUNDARY = FLOW | {"cells": "touched"}
SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "patchcore": ("PatchCore", {}),
    "nfad": ("NFAD", FLOW),
    "bgad": ("BGAD", BOUNDARY),
    "bgad_nearest": ("BGAD", FLOW),
    "bgad_unpushed": ("BGAD", BOUNDARY | {"boundary_weight": 0.0}),
    "bgad_none": ("BGAD", BOUNDARY | {"synthesis": "none"}),
    "bgad_perlin": ("BGAD", BOUNDARY | {"synthesis": "perlin"}),
    "bgad_cut_paste": ("BGAD", BOUNDARY | {"synthesis": "cut_paste"}),
}
SHOWN = ("image_auroc", "pixel_auroc", "aupro")


def main() -> None:
    task = read_task(sys.argv)
    if task is not None:
        answer(task, fit(task))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", choices=tuple(SIDES),
                        default=["patchcore", "nfad", "bgad"])  # fmt: skip
    parser.add_argument("--known", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--protocols", nargs="+", default=["multi_class", "one_class"])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="options for all, as name=value")
    parser.add_argument("--limit-train", type=int)
    parser.add_argument("--limit-test", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "machine": describe(options.threads), "versions": versions("amiss", "torch", "numpy"),
        "limits": [options.limit_train, options.limit_test], "set": options.set, "runs": [],
    }  # fmt: skip
    for source in options.data:
        for draw in options.draws:
            tests = [
                (protocol, number)
                for protocol in options.protocols
                if protocol == "multi_class" or has_kinds(source)
                for number in options.known
            ]
            for side in options.methods:
                learns = side.startswith("bgad")
                for some in [[test] for test in tests] if learns else [tests]:
                    task = {"data": source, "side": side, "draw": draw, "tests": some,
                            "set": options.set, "limits": report["limits"]}  # fmt: skip
                    found = child(sys.executable, __file__, task, options.threads)
                    report["runs"] += found["runs"]
                    for run in found["runs"]:
                        tell(run)
                    if options.output:
                        write_json(options.output, report)
    tell_means(report["runs"])


def tell_means(runs: list[dict[str, Any]]) -> None:
    """The mean over the draws, and the interval of the first draw."""
    print("mean of the draws, [95 % interval of the first draw's test images]")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        key = (run["data"], run["protocol"], run["known"], run["side"])
        groups.setdefault(key, []).append(run)
    for key, group in groups.items():
        cells = []
        for name in SHOWN:
            if name in group[0]:
                low, high = group[0]["intervals"][name]
                mean = sum(run[name] for run in group) / len(group)
                cells.append(f"{name} {mean:.3f} [{low:.3f}, {high:.3f}]")
        print("  ".join([f"{key[0]}  {key[1]:<12} {key[2]:>3}  {key[3]:<14}", *cells]))


def tell(run: dict[str, Any]) -> None:
    """One line of figures."""
    figures = "  ".join(f"{key} {run[key]:.4f}" for key in SHOWN if key in run)
    print(
        f"{run['data']}  {run['test']:<28} draw {run['draw']}  {run['side']:<14} {figures}  "
        f"{run['fit_seconds']:.0f} s  {run['peak_mib']:.0f} MiB",
        flush=True,
    )  # fmt: skip


def has_kinds(source: str) -> bool:
    """Whether anomalous images are of several kinds."""
    from amiss.data.index import index

    return len(kinds_of(index(source))) > 1


def kinds_of(dataset: Any) -> list[str]:
    """Of its anomalous test images."""
    return sorted({r.kind for r in dataset.test if r.label == 1 and r.kind})


def fit(task: dict[str, Any]) -> dict[str, Any]:
    """Fit once and judge on each test."""
    import torch

    import amiss
    from amiss.data.index import index
    from amiss.data.known_anomalies import AskedKnown, with_known

    torch.set_num_threads(task["threads"])
    whole = drawn(index(task["data"]), *task["limits"])
    name, own = SIDES[task["side"]]
    method = getattr(amiss, name)
    detector, runs, fitted = None, [], 0.0
    for protocol, number in task["tests"]:
        kind = None
        if protocol == "one_class":
            kinds = kinds_of(whole)
            kind = kinds[task["draw"] % len(kinds)]
        asked = AskedKnown(kind, number, task["draw"], "")
        dataset = with_known(whole, asked)
        if detector is None:
            began = time.perf_counter()
            detector = method(**own | options_of(method.config_type, task["set"]))
            run = amiss.Run(seed=task["draw"])
            detector.fit(dataset, max_false_alarm=0.05, run=run)
            fitted = time.perf_counter() - began
        report = amiss.evaluate(detector, dataset)
        runs.append({
            "data": title(task["data"]), "test": asked.title, "draw": task["draw"],
            "protocol": protocol, "known": number, "kind": kind,
            "side": task["side"], **{key: report.metrics[key] for key in report.metrics},
            "intervals": {key: list(pair) for key, pair in report.intervals.items()},
            "recall": report.operating_point["recall"],
            "false_alarm_rate": report.operating_point["false_alarm_rate"],
            "fit_seconds": fitted, "peak_mib": peak_mib(), "judged": len(report.judged),
        })  # fmt: skip
    return {"runs": runs}


if __name__ == "__main__":
    main()
