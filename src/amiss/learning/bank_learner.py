"""`BankLearner`: how a method with a bank of patches learns it and calibrates itself.

With room for all patches: embed every image once, choose the bank, and judge each image by the bank
that the others make. Without: reduce the patches as they come, and judge a fifth that was held out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from amiss.errors import MemoryLimitError
from amiss.learning.embedding import embedded
from amiss.learning.held_out import (
    HeldOut,
    Judge,
    cross_conformal,
    hold_out,
    leave_one_out,
    score_held_out,
    told_held_out,
)
from amiss.learning.normals import Normals
from amiss.learning.partial import Partial
from amiss.memory.bank import Bank, MemoryBank
from amiss.memory.buffer import CoresetBuffer
from amiss.memory.coreset import Coreset
from amiss.memory.embeddings import Embeddings
from amiss.memory.leave_out import LeaveOneOut
from amiss.memory.plan import MemoryPlan, plan_memory
from amiss.memory.selection import Selection, sample_rows
from amiss.nn.roi import roi_cells
from amiss.run import Run, mute
from amiss.types import Bool, Int64, Prediction

_SAMPLE = 2048  # patches on which an approximate index is measured
_FOLDS = 5  # where one image at a time cannot be left out cheaply


class LearnedBank(NamedTuple):
    """A bank, what there is to say about it, and what held-out normals score."""

    bank: MemoryBank
    facts: dict[str, Any]
    held_out: HeldOut


@dataclass(frozen=True)
class BankLearner:
    """`embed` turns images (B, 3, H, W) uint8 into (B, D, h, w); `score` judges patches (B, P, D)
    by a bank, with rois (B, H, W) or None. `grid` is (D, h, w). `folds` 0 leaves out one image at a
    time. `job` names everything that the embeddings depend on, for work that was interrupted.
    """

    embed: Callable[[Tensor], Tensor]
    score: Callable[[Bank, Tensor, Tensor | None], Prediction[Tensor]]
    grid: tuple[int, int, int]
    selection: Selection
    num_neighbors: int
    search: str
    folds: int
    job: dict[str, Any]

    def learn(self, images: Normals, run: Run) -> LearnedBank:
        """Say how much memory it takes, then learn."""
        dim, height, width = self.grid
        rows = len(images) * height * width
        size = self.selection.count(rows)
        plan = plan_memory(rows, dim, size, limit_mib=run.max_memory_mib)
        run.say(plan.describe())
        if plan.chunk_rows is not None:
            return self._learn_stream(images, run, plan)
        partial = Partial(
            run.partial, self.job | images.reading(), list(images.stream.records), run.say
        )
        store = Embeddings(len(images), height * width, dim, images.stream.size)
        kept = partial.load()
        if kept:
            images.restore_digests(kept["digests"])
            store.restore(kept)
            run.say(f"going on after {store.done} images and {len(store.picks)} picks")
        try:
            return self._learn_whole(images, run, store)
        except KeyboardInterrupt:
            try:
                partial.save(store.tensors() | {"digests": images.digest_rows(store.done)})
            except (OSError, SafetensorError) as error:
                run.say(f"The work so far could not be kept: {error}.")
            raise

    def _learn_whole(self, images: Normals, run: Run, store: Embeddings) -> LearnedBank:
        for indices, patches, roi in embedded(
            self._patches, images, range(store.done, len(images)), run
        ):
            store.put(indices, patches, roi)
        inside = store.inside(self.grid[1:])  # (n, P)
        flat_inside = inside.reshape(-1)
        chosen = self.selection.choose(
            store.flat, flat_inside, picks=store.picks, progress=run.progress
        )
        bank = self._bank(store.flat, chosen, flat_inside, run)
        facts = _facts(bank, int(inside.sum()), chosen.radius)
        group = images.groups()
        # The stand-in for a bank without an image is greedy and exact: other rules choose anew.
        greedy = self.selection.how == "greedy" and not self.selection.projection_dim
        folds = self.folds or (0 if greedy and bank.index is None else _FOLDS)
        if folds:
            held_out = self._over_folds(store, inside, group, folds, run)
        else:
            others = LeaveOneOut(store.flat, chosen, flat_inside, group)
            judge = self._judge(store, lambda i: others.without(i, self.num_neighbors))
            held_out = leave_one_out(group, judge, run)
        return LearnedBank(bank, facts, held_out)

    def _patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, P, D)."""
        return self.embed(images).flatten(2).transpose(1, 2)

    def _bank(self, flat: Tensor, chosen: Coreset, inside: Bool, run: Run) -> MemoryBank:
        """The bank of some of all patches (n * P, D)."""
        _, height, width = self.grid
        picks = torch.from_numpy(chosen.indices)
        image, cell = picks // (height * width), picks % (height * width)
        origin = torch.stack([image, cell // width, cell % width], dim=1).to(torch.int32)
        sample = sample_rows(flat, inside, _SAMPLE, run.seed)
        return self._ready(flat[picks], origin, sample, run)

    def _ready(self, rows: Tensor, origin: Tensor, sample: Tensor, run: Run) -> MemoryBank:
        """A bank with its search chosen, measured on `sample`, and its neighbourhoods known."""
        bank = MemoryBank(rows, num_neighbors=self.num_neighbors, origin=origin)
        bank.choose_search(self.search, sample, seed=run.seed, say=run.say)
        bank.tabulate()
        return bank

    def _judge(self, store: Embeddings, bank_for: Callable[[int], Bank]) -> Judge:
        """How to score an image with the bank that others make for it."""

        def judge(i: int) -> tuple[Prediction[Tensor], Tensor | None]:
            roi = store.rois.get(i)
            return self.score(bank_for(i), store.patches[i : i + 1], roi), roi

        return judge

    def _over_folds(
        self, store: Embeddings, inside: Bool, group: Int64, folds: int, run: Run
    ) -> HeldOut:
        """Score every fold with a bank chosen anew among the others."""
        quiet = dataclasses.replace(run, say=mute)

        def learn(images: Bool) -> Judge:
            others = (inside & images[:, None]).reshape(-1)
            chosen = self.selection.choose(store.flat, others)
            bank = self._bank(store.flat, chosen, others, quiet)
            return self._judge(store, lambda _: bank)

        return cross_conformal(group, folds, run, learn)

    def _learn_stream(self, images: Normals, run: Run, plan: MemoryPlan) -> LearnedBank:
        if self.selection.how == "random" or self.selection.projection_dim:
            raise MemoryLimitError(
                "coreset=random and projection_dim need all patches at once, and these do not fit.",
                hint="Leave the option out, or raise max_memory.",
            )
        n = len(images)
        held_out = hold_out(images, run.seed)
        bank, facts = self._reduce(images, np.setdiff1d(np.arange(n), held_out), run, plan)

        def model(x: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
            return self.score(bank, self._patches(x), roi)

        how = told_held_out(held_out, images)
        return LearnedBank(bank, facts, score_held_out(model, images, held_out, run, how))

    def _reduce(
        self, images: Normals, numbers: Int64, run: Run, plan: MemoryPlan
    ) -> tuple[MemoryBank, dict[str, Any]]:
        """Pass the patches of some images through a buffer that is reduced as it fills."""
        assert plan.chunk_rows is not None
        dim, height, width = self.grid
        buffer = CoresetBuffer(dim, chunk_rows=plan.chunk_rows, keep=plan.keep)
        cell = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(torch.int32)
        sample = torch.empty(0, dim)
        for indices, patches, roi in embedded(self._patches, images, numbers, run):
            cells = None if roi is None else roi_cells(roi, (height, width))
            for row, i in enumerate(indices):
                image = torch.full((len(cell), 1), int(i), dtype=torch.int32)
                kept = slice(None) if cells is None else cells[row]
                buffer.add(patches[row][kept], torch.cat([image, cell], dim=1)[kept])
                sample = patches[row][kept]
        size = self.selection.count(buffer.rows_seen)
        rows, origin, radius = buffer.finish(size, progress=run.progress)
        bank = self._ready(rows, origin, sample, run)
        return bank, _facts(bank, buffer.rows_seen, radius)


def _facts(bank: MemoryBank, seen: int, radius: float) -> dict[str, Any]:
    return {"patches_seen": seen, "rows": len(bank), "covering_radius": radius}
