"""What teaching a detector some of its misses does to the others: recall and false alarms.

    python benchmarks/teaching.py --data SET [--taught N] [--draws 0 1 2] [--rate R]
        [--masks] [--limit-train N] [--limit-test N] [--threads N] [--output FILE]

A PatchCore at its defaults judges the test images of SET. Of the anomalous ones that it misses, N
are drawn by the draw's seed and taught, without masks unless asked for; both detectors are judged
on all other test images. Those that were missed and those that were caught before are counted
apart: by their choice the first are all missed before and the second all caught. So two controls
stand beside, judged on the same images: `unpushed` is taught the same with boundary_weight=0, the
same flows in as many steps, to which the defects say nothing; `taught_any` is taught N anomalous
test images of any kind, missed or not, which are then judged by nobody. `either` is the advice of
docs/teaching.md: what the old detector or the taught one calls anomalous, each at half of the rate.
Where a threshold falls is a matter of few normal images, so the recall of each side at the rate R
is read off its ROC curve of the judged images as well. For the first draw without masks and limits
the command teaches the file as well, has to end at the same figures, and takes it back: the file is
compared byte by byte.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from machine import answer, child, describe, peak_mib, read_task, versions, write_json
from sets import drawn, title


def main() -> None:
    task = read_task(sys.argv)
    if task is not None:
        answer(task, lesson(task))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--taught", type=int, default=10)
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rate", type=float, default=0.05, help="of false alarms, as asked for")
    parser.add_argument("--masks", action="store_true", help="teach the defects with their masks")
    parser.add_argument("--limit-train", type=int)
    parser.add_argument("--limit-test", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "machine": describe(options.threads), "versions": versions("amiss", "torch", "numpy"),
        "data": title(options.data), "taught": options.taught, "rate": options.rate,
        "limits": [options.limit_train, options.limit_test], "masks": options.masks, "runs": [],
    }  # fmt: skip
    for draw in options.draws:
        task = {
            "data": options.data, "taught": options.taught, "draw": draw, "rate": options.rate,
            "limits": report["limits"], "masks": options.masks,
            "with_command": draw == options.draws[0] and not options.masks
            and report["limits"] == [None, None],  # else no name of a set says what is judged
        }  # fmt: skip
        run = child(sys.executable, __file__, task, options.threads)
        report["runs"].append(run)
        tell(run)
        if options.output:
            write_json(options.output, report)


def tell(run: dict[str, Any]) -> None:
    """Figures of one draw."""
    print(f"draw {run['draw']}: {run['misses']} misses, taught in {run['teach_seconds']:.0f} s")
    for name in ("before", "taught", "unpushed", "taught_any", "either"):
        side = run[name]
        print(
            f"  {name:<12}missed before {side['missed'][0]} of {side['missed'][1]}  "
            f"caught before {side['caught'][0]} of {side['caught'][1]}  "
            f"false alarms {side['false_alarms'][0]} of {side['false_alarms'][1]}  "
            f"AUROC {side['image_auroc']:.4f}  recall at equal false alarms "
            f"{side['recall_at_rate']:.3f}",
            flush=True,
        )
    if "command" in run:
        print(f"  by the command: {run['command']}", flush=True)


def lesson(task: dict[str, Any]) -> dict[str, Any]:
    """One draw."""
    import numpy as np
    import torch

    import amiss
    from amiss.data.index import index
    from amiss.teaching import teach

    torch.set_num_threads(task["threads"])
    whole = drawn(index(task["data"]), *task["limits"])
    old = amiss.PatchCore()
    old.fit(whole, max_false_alarm=task["rate"], run=amiss.Run(seed=task["draw"]))
    first = amiss.evaluate(old, whole)
    anomalous = [row for row in first.judged if row.label == 1]
    missed = {row.path for row in anomalous if not row.result.is_anomalous}
    random = np.random.default_rng(task["draw"])
    if len(missed) < 2 * task["taught"]:
        raise SystemExit(f"{len(missed)} misses are too few to teach {task['taught']} of them.")
    by_path = {
        record.path: record if task["masks"] else dataclasses.replace(record, mask=None)
        for record in whole.test
    }
    shown = [by_path[sorted(missed)[i]] for i in random.permutation(len(missed))[: task["taught"]]]
    others = [by_path[anomalous[i].path]
              for i in random.permutation(len(anomalous))[: task["taught"]]]  # fmt: skip
    began = time.perf_counter()
    taught = teach(old, anomalous=shown, judge=whole, run=amiss.Run(seed=task["draw"]))
    seconds = time.perf_counter() - began

    def taught_else(records: list[Any], **options: Any) -> Any:
        run = amiss.Run(seed=task["draw"])
        return teach(old, anomalous=records, judge=whole, options=options, run=run).after

    of_any = taught_else(others)
    unpushed = taught_else(shown, boundary_weight=0.0)
    rest = {row.path for row in taught.after.judged} & {row.path for row in of_any.judged}
    sides = {
        "before": judged(first), "taught": judged(taught.after),
        "unpushed": judged(unpushed), "taught_any": judged(of_any),
        "either": either((old, first), (taught.detector, taught.after), task["rate"]),
    }  # fmt: skip
    found = {
        "draw": task["draw"], "misses": len(missed), "n_anomalous": len(anomalous),
        "teach_seconds": seconds, "peak_mib": peak_mib(),
        "rate_kept": taught.after.operating_point["alpha"],
        "expected_rate": taught.after.operating_point["false_alarm_interval"],
        **{
            name: side([row for row in rows if row.path in rest], missed, task["rate"])
            for name, rows in sides.items()
        },
        "shown": [record.path.name for record in shown],
        "any": [record.path.name for record in others],
    }  # fmt: skip
    if task["with_command"]:
        found["command"] = by_command(old, shown, taught, task)
    return found


class Row(NamedTuple):
    """An image that was judged."""

    path: Path
    label: int
    score: float
    is_anomalous: bool


def judged(report: Any) -> list[Row]:
    """The images of an evaluation."""
    return [
        Row(row.path, row.label, row.result.score, bool(row.result.is_anomalous))
        for row in report.judged
    ]


def either(one: tuple[Any, Any], other: tuple[Any, Any], rate: float) -> list[Row]:
    """What one of two detectors calls anomalous, each at half of the rate, by their evaluations;
    the score is the larger one, in units of the thresholds."""
    from amiss.calibration import with_false_alarm_rate

    scores: dict[Path, float] = {}
    labels: dict[Path, int] = {}
    for detector, report in (one, other):
        threshold = with_false_alarm_rate(detector.calibration, rate / 2).threshold
        for row in judged(report):
            scores[row.path] = max(scores.get(row.path, 0.0), row.score / threshold)
            labels[row.path] = row.label
    return [Row(path, labels[path], score, score > 1) for path, score in scores.items()]


def side(rows: list[Row], missed: set[Path], rate: float) -> dict[str, Any]:
    """[found, of all] of the anomalous images that were missed before, and caught before; and false
    alarms. Recall at `rate` is a point of the ROC curve of these very images, not what a threshold
    set beforehand reaches."""
    from amiss.metrics import bootstrap_interval, image_auroc
    from amiss.metrics.image import roc_curve

    def count(chosen: list[Row]) -> list[int]:
        return [sum(row.is_anomalous for row in chosen), len(chosen)]

    scores, labels = [row.score for row in rows], [row.label for row in rows]
    fpr, tpr = roc_curve(scores, labels)
    return {
        "missed": count([row for row in rows if row.label == 1 and row.path in missed]),
        "caught": count([row for row in rows if row.label == 1 and row.path not in missed]),
        "false_alarms": count([row for row in rows if row.label == 0]),
        "image_auroc": image_auroc(scores, labels),
        "interval": bootstrap_interval("image_auroc", scores, labels),
        "recall_at_rate": float(tpr[fpr <= rate].max()),
    }


def by_command(old: Any, shown: list[Any], taught: Any, task: dict[str, Any]) -> dict[str, Any]:
    """`amiss teach` on a file of the old detector, and `--undo`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "part.amiss")
        old.save(path)
        before = path.read_bytes()
        command = [sys.executable, "-m", "amiss", "teach", str(path)]
        done = subprocess.run(
            [*command, "--anomalous", *(str(record.path) for record in shown), "--json",
             "--judge", task["data"], "--seed", str(task["draw"]),
             "--threads", str(task["threads"])],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        told = json.loads(done.stdout)["after"]
        changed = path.read_bytes() != before
        subprocess.run([*command, "--undo"], check=True, capture_output=True)
        return {
            "figures_are_those_of_python": told["metrics"] == taught.after.metrics
            and told["operating_point"]["detected"] == taught.after.operating_point["detected"],
            "changed_the_file": changed,
            "undone_to_the_byte": path.read_bytes() == before,
        }


if __name__ == "__main__":
    main()
