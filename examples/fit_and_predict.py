"""Fit on a folder of normal images, save, load, and judge other images.

python examples/fit_and_predict.py photos/good new/ part.amiss
"""

from __future__ import annotations

import sys
from pathlib import Path

import amiss


def main(normal: str, new: str, output: str) -> None:
    """Learn from `normal`, judge every PNG in `new`."""
    detector = amiss.PatchCore(coreset_ratio=0.05).fit(normal, max_false_alarm=0.05)
    detector.save(output)
    detector = amiss.load(output)
    results = detector.predict(sorted(Path(new).glob("*.png")))
    for result in results:
        verdict = "anomalous" if result.is_anomalous else "normal"
        print(f"{result.path.name}: {verdict}, p = {result.p_value:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
