"""Judge frames that are already in memory, and say where the worst spot is.

python examples/camera_loop.py part.amiss
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

import amiss


def frames(count: int) -> Iterator[np.ndarray]:
    """Stands for a camera: gray uint8 images (H, W)."""
    random = np.random.default_rng(0)
    for _ in range(count):
        yield random.integers(90, 110, (120, 160), dtype=np.uint8)


def main(artifact: str) -> None:
    """Judge five frames."""
    detector = amiss.load(artifact)
    for number, frame in enumerate(frames(5)):
        result = detector.predict(frame)
        if result.regions:
            worst = result.regions[0]
            print(f"frame {number}: score {result.score:.2f}, worst at {worst.peak_at}")
        else:
            print(f"frame {number}: score {result.score:.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
