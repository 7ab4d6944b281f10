"""Features of many images, computed image by image on all cores while the next are decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from amiss.learning.normals import Normals, to_tensors
from amiss.nn.parallel import ImageWorkers
from amiss.run import Run
from amiss.types import Int64

Embed = Callable[[Tensor], Tensor]
"""(B, 3, H, W) uint8 -> (B, P, D) float32."""


MoveRoi = Callable[[Tensor, Tensor], Tensor]
"""(images, rois (B, H, W) bool) -> the rois in the frame of the features, where it is another."""


def embedded(
    embed: Embed,
    images: Normals,
    numbers: Iterable[int],
    run: Run,
    *,
    stage: str = "features",
    move_roi: MoveRoi | None = None,
) -> Iterator[tuple[Int64, Tensor, Tensor | None]]:
    """Batches of (numbers of the images, features (B, P, D), rois (B, H, W) or None)."""
    done = 0
    indices = np.array(numbers, dtype=np.int64)
    with ImageWorkers() as workers:
        for batch in images.only(indices, run.batch_size):
            x, roi = to_tensors(batch.images, batch.rois)
            features = torch.cat(workers.map(embed, x.split(1)))
            if roi is not None and move_roi is not None:
                with torch.inference_mode():
                    roi = move_roi(x, roi)
            done += len(batch.indices)
            run.progress(stage, done, len(indices))
            yield batch.indices, features, roi
