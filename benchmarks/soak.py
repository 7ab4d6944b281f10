"""A line that runs: `amiss predict --watch` under a steady stream of files, some of them broken.

python benchmarks/soak.py DETECTOR --images FOLDER [--minutes 10] [--rate 10] [--output FILE]

DETECTOR is a file of `amiss fit` or `amiss export`. Images of FOLDER are copied into a watched
folder at `--rate` a second; one in twenty is broken (cut short, or no image at all), and files are
taken away a minute later. At the end SIGTERM stops the run, which must have judged every whole
image and named every broken one. Reports the memory of the process over time and the latencies
that it printed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe, write_json

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}
BROKEN = 20  # one in so many
KEPT_S = 60.0  # how long a file lies in the folder


def main() -> None:
    """Run it and print what it found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="folder of images, searched")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=10, help="files a second")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    machine = describe(options.threads)
    found = soak(options)
    report = {"settings": settings(options), "machine": machine, **found}
    print(json.dumps(report, indent=1))
    if options.output:
        write_json(options.output, report)
    if found["lost"] or found["broken"] != found["skipped"]:
        raise SystemExit("Files were lost.")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {"detector": options.detector.name, "minutes": options.minutes, "rate": options.rate}


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Feed the watched folder; count what came out."""
    pool = sorted(p for p in options.images.rglob("*") if p.suffix.lower() in SUFFIXES)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        inbox, lines = Path(folder, "inbox"), Path(folder, "results.jsonl")
        inbox.mkdir()
        command = [
            sys.executable, "-m", "amiss", "predict", str(options.detector), "--watch",
            str(inbox), "--jsonl", str(lines), "--json", "--threads", str(options.threads),
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until_it_watches(inbox, lines, pool[0])
        whole, broken, memory = feed(process.pid, inbox, pool, rng, options)
        time.sleep(5)  # for the second look at the last broken files
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        told = json.loads(out)
        judged = [json.loads(line)["path"] for line in lines.read_text().splitlines()]
    names = {Path(path).name for path in judged}
    return {
        "exit_status": process.returncode,
        "whole": len(whole), "broken": broken, "skipped": told["n_skipped"],
        "lost": len(whole - names), "judged_twice": len(judged) - len(names),
        "latency_ms": told["latency_ms"],
        "memory_mib": trend(memory),
        "stderr": err.decode().splitlines()[:5],
    }  # fmt: skip


def wait_until_it_watches(inbox: Path, lines: Path, image: Path) -> None:
    """What lies there when a watch begins is not new: copy one again until it is judged."""
    end = time.monotonic() + 60
    number = 0
    while not (lines.exists() and lines.stat().st_size):
        if time.monotonic() > end:
            raise SystemExit("The watch did not begin.")
        shutil.copyfile(image, inbox / f"first{number}{image.suffix}")
        number += 1
        time.sleep(1)
    time.sleep(2)


def feed(
    pid: int, inbox: Path, pool: list[Path], rng: random.Random, options: argparse.Namespace
) -> tuple[set[str], int, list[float]]:
    """(names of whole files, number of broken ones, MiB of the process every five seconds)."""
    whole: set[str] = set()
    broken, number = 0, 0
    memory: list[float] = []
    waiting: list[tuple[float, Path]] = []
    begun = last = time.monotonic()
    while (now := time.monotonic()) - begun < 60 * options.minutes:
        source = pool[number % len(pool)]
        target = inbox / f"{number:07}{source.suffix}"
        hidden = inbox / f".{target.name}"
        data = source.read_bytes()
        if rng.randrange(BROKEN) == 0:
            kinds = (data[: len(data) // 3], b"not an image", data[:64])
            hidden.write_bytes(kinds[broken % len(kinds)])
            broken += 1
        else:
            hidden.write_bytes(data)
            whole.add(target.name)
        hidden.rename(target)
        waiting.append((now, target))
        while waiting and now - waiting[0][0] > KEPT_S:
            waiting.pop(0)[1].unlink()
        if now - last >= 5:
            last = now
            memory.append(resident_mib(pid))
        number += 1
        time.sleep(max(0.0, begun + number / options.rate - time.monotonic()))
    return whole, broken, memory


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("The watch has ended.")


def trend(memory: list[float]) -> dict[str, Any]:
    """Medians of the second and the last tenth, and their difference: the first warms up."""
    tenth = max(1, len(memory) // 10)
    early = statistics.median(memory[tenth : 2 * tenth] or memory)
    late = statistics.median(memory[-tenth:])
    every = max(1, len(memory) // 20)
    return {
        "second_tenth": early, "last_tenth": late, "growth": late - early, "most": max(memory),
        "over_time": [round(value, 1) for value in memory[::every]],
    }  # fmt: skip


if __name__ == "__main__":
    main()
