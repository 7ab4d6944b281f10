"""Which images of a set are the same image, and which show the same thing again.

Near duplicates are found in small gray versions of the images, by what makes an image differ from
the others of its set. Photographs of one product are all alike, so the plain difference of two of
them says little. We therefore compare horizontal and vertical differences between neighbouring
pixels (which ignore brightness), after removing their mean over the set and the few patterns that
many images share (bars of a solar cell, uneven light), and call two images near duplicates when
what remains correlates by `SAME` or more. Re-encoded, rescaled, brightened copies and second
photographs of an object that was not moved are found; cut or turned copies are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from amiss.types import Float32, Int64, UInt8

SAME = 0.93
"""Correlation at which two images count as near duplicates. Chosen on five sets of photographs:
copies saved as JPEG of quality 90 are all above it; of different objects, only those come near it
that hardly differ to the eye."""

FEWEST = 8
"""With fewer images the set does not tell what its images share, and nothing is searched."""

_CANDIDATE = 0.8  # at half the size, before the exact comparison
_NEIGHBOURS = 8  # candidates per image: bounds the work on sets that are one long film
_PATTERNS = 16  # shared patterns that are removed, fewer in small sets: one per 12 images
_SAMPLE = 1000  # images that the patterns are learned from
_COPY = 0.98  # correlation, patterns included, that keeps an image from shaping the patterns
_LEAST_DETAIL = 0.5  # gray levels; below it, what remains is rounding
_BLOCK = 512


def same_groups(keys: Sequence[Iterable[Hashable]]) -> list[list[int]]:
    """Groups of two or more positions that share any key, each sorted, in order."""
    groups = _Groups(len(keys))
    first: dict[Hashable, int] = {}
    for position, own in enumerate(keys):
        for key in own:
            groups.join(position, first.setdefault(key, position))
    return groups.lists()


def near_groups(thumbs: UInt8) -> list[list[int]]:
    """Groups of near duplicates among (N, S, S) uint8 gray thumbnails, S even.

    Memory: about 4 S^2 bytes per image. Time: one matrix product of (N, S^2 / 2) with itself.
    """
    N, S, _ = thumbs.shape
    groups = _Groups(N)
    if N < FEWEST:
        return []
    # (N, S/2, S/2): the mean of 2 x 2 pixels
    half = thumbs.reshape(N, S // 2, 2, S // 2, 2).mean(axis=(2, 4), dtype=np.float32)
    pairs = _candidates(_unit(_Patterns(half).remove(half)))
    if not len(pairs):
        return []
    involved, places = np.unique(pairs, return_inverse=True)
    unit = _unit(_Patterns(thumbs).remove(thumbs[involved]))
    for left, right in places.reshape(pairs.shape):
        if float(unit[left] @ unit[right]) >= SAME:
            groups.join(int(involved[left]), int(involved[right]))
    return groups.lists()


class _Patterns:
    """The mean and the patterns that many images of a set share, in the space of differences."""

    def __init__(self, images: npt.NDArray[np.uint8] | Float32) -> None:
        step = max(1, -(-len(images) // _SAMPLE))
        sample = _differences(images[::step])  # (M, D)
        self.mean = sample.mean(axis=0)
        sample -= self.mean
        # Copies would make patterns of their own and so hide themselves: one of each is enough.
        sample = sample[_distinct(sample)]
        M = len(sample)
        # Principal components through the (M, M) products, M being far below D.
        values, vectors = np.linalg.eigh(sample @ sample.T)
        top = slice(M - min(_PATTERNS, M // 12), M)
        values, vectors = values[top], vectors[:, top]
        # How many images carry a component: 1 / sum u^4 is 2 for a pair of copies and M for a
        # pattern in all. Only what many carry is no sign of being a copy.
        carriers = 1 / np.maximum((vectors**4).sum(axis=0), 1e-12)
        shared = (carriers >= max(FEWEST, 0.05 * M)) & (values > 0)
        self.basis: Float32 = (vectors[:, shared] / np.sqrt(values[shared])).T @ sample  # (K, D)

    def remove(self, images: npt.NDArray[np.uint8] | Float32) -> Float32:
        """(N, S, S) to what remains of their differences, (N, D)."""
        rest = _differences(images)
        rest -= self.mean
        rest -= (rest @ self.basis.T) @ self.basis
        return rest


def _distinct(sample: Float32) -> Int64:
    """The rows that correlate with no row kept before by more than `_COPY`."""
    unit = _unit(sample.copy())
    alike = unit @ unit.T > _COPY
    kept: list[int] = []
    for row in range(len(sample)):
        if not alike[row, kept].any():
            kept.append(row)
    return np.array(kept, dtype=np.int64)


def _differences(images: npt.NDArray[np.uint8] | Float32) -> Float32:
    """(N, S, S) to (N, 2 S (S - 1)) float32: steps to the right and steps down."""
    N = len(images)
    values = images.astype(np.float32)
    right = np.diff(values, axis=2).reshape(N, -1)
    down = np.diff(values, axis=1).reshape(N, -1)
    return np.concatenate([right, down], axis=1)


def _unit(rest: Float32) -> Float32:
    """Rows scaled, in place, to length 1, or to 0 where an image has no detail of its own."""
    norms = np.linalg.norm(rest, axis=1, keepdims=True)
    least = _LEAST_DETAIL * np.sqrt(rest.shape[1])
    rest *= np.where(norms < least, 0, 1 / np.maximum(norms, least)).astype(np.float32)
    return rest


def _candidates(unit: Float32) -> Int64:
    """(P, 2) pairs i < j whose rows correlate, for each row at most its nearest few."""
    N = len(unit)
    K = min(_NEIGHBOURS, N - 1)
    pairs = [np.empty((0, 2), np.int64)]
    for start in range(0, N, _BLOCK):
        block = unit[start : start + _BLOCK] @ unit.T  # (B, N)
        rows = np.arange(len(block))
        block[rows, start + rows] = -1
        nearest = np.argpartition(block, N - K, axis=1)[:, N - K :]  # (B, K)
        good = np.take_along_axis(block, nearest, axis=1) >= _CANDIDATE
        row, column = np.nonzero(good)
        pairs.append(np.sort(np.stack([row + start, nearest[row, column]], axis=1), axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


class _Groups:
    """Positions that are joined to groups (union-find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def _root(self, position: int) -> int:
        while self._parent[position] != position:
            self._parent[position] = self._parent[self._parent[position]]
            position = self._parent[position]
        return position

    def join(self, left: int, right: int) -> None:
        low, high = sorted((self._root(left), self._root(right)))
        self._parent[high] = low

    def lists(self) -> list[list[int]]:
        """The groups of two or more, each sorted, by their first position."""
        members: defaultdict[int, list[int]] = defaultdict(list)
        for position in range(len(self._parent)):
            members[self._root(position)].append(position)
        return [group for group in members.values() if len(group) > 1]
