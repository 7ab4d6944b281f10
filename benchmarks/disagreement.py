"""Uninformed Students taken apart: what each term of the score tells, and what the maximum hides.

    python benchmarks/disagreement.py --data SET --detector FILE.amiss [--output FILE]

For each patch size and for both terms, the students' error and their variance, image AUROC over all
test images of the largest cell, of the 99th percentile and of the mean of the cells; and the same
of their sum, which is the method's score where the largest cell is taken. Beside it stands what
needs no network: the contrast of an image, the mean difference of neighbouring pixels, its AUROC,
its rank correlation with each score over the normal test images alone, and its median over the
training images, the normal and the anomalous test images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from machine import describe, write_json

import amiss
from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.learning.normals import to_tensors
from amiss.metrics import image_auroc

HOW = {
    "largest": lambda cells: cells.max(axis=1),
    "99th percentile": lambda cells: np.percentile(cells, 99, axis=1),
    "mean": lambda cells: cells.mean(axis=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--detector", type=Path, required=True, help="a fitted uninformed_students")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    detector = amiss.load(options.detector)
    records = index(options.data).test
    labels = np.array([record.label for record in records])
    maps, contrasts = [], []
    with torch.inference_mode():
        for batch in ImageStream(records, size=detector.image_size).batches(8):
            x, _ = to_tensors(batch.images, None)
            contrasts += contrast(batch.images)
            maps += [detector.ensemble(one) for one in x.split(1)]
    found = torch.cat(maps)  # (B, L, 2, h, w)
    units = (found - detector.spread[..., 0, None, None]) / detector.spread[..., 1, None, None]
    cells = units.flatten(3).numpy()
    terms = {}
    for level, size in enumerate(detector.config.patch_sizes):
        terms[f"{size} px, error"] = cells[:, level, 0]
        terms[f"{size} px, variance"] = cells[:, level, 1]
    terms["sum"] = cells.sum(axis=2).mean(axis=1)
    rows = {
        term: {how: float(image_auroc(reduce(values), labels)) for how, reduce in HOW.items()}
        for term, values in terms.items()
    }
    for term, row in rows.items():
        print(f"{term:<16}", "  ".join(f"{how} {value:.3f}" for how, value in row.items()))
    told = image_auroc(contrasts, labels)
    learned = ImageStream(index(options.data).train, size=detector.image_size).batches(8)
    medians = {
        "training": float(np.median([c for batch in learned for c in contrast(batch.images)])),
        "normal test": float(np.median(np.array(contrasts)[labels == 0])),
        "anomalous test": float(np.median(np.array(contrasts)[labels == 1])),
    }
    print("median contrast:", ", ".join(f"{name} {value:.2f}" for name, value in medians.items()))
    normal = labels == 0
    follows = {
        how: rank_correlation(reduce(terms["sum"])[normal], np.array(contrasts)[normal])
        for how, reduce in HOW.items()
    }
    print(f"contrast: AUROC {told:.3f}; rank correlation over normal images with the sum's",
          ", ".join(f"{how} {value:.2f}" for how, value in follows.items()))  # fmt: skip
    if options.output:
        report = {"machine": describe(torch.get_num_threads()), "data": Path(options.data).name,
                  "options": detector.config.as_dict(), "image_auroc": rows,
                  "contrast_auroc": told, "contrast_medians": medians,
                  "contrast_correlation": follows}  # fmt: skip
        write_json(options.output, report)


def contrast(images: np.ndarray) -> list[float]:
    """Of images (B, H, W, 3) uint8."""
    gray = images.astype(np.float32).mean(axis=3)
    down, across = np.abs(np.diff(gray, axis=1)), np.abs(np.diff(gray, axis=2))
    return [float(x) for x in down.mean(axis=(1, 2)) + across.mean(axis=(1, 2))]


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    main()
