"""`check`: the data doctor. Says what is wrong with a set before time goes into a fit."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from amiss.data.duplicates import near_groups, same_groups
from amiss.data.findings import Finding, Findings, about, number
from amiss.data.index import LABEL_NAMES, Dataset, Source, index
from amiss.data.inspection import (
    ImageLook,
    MaskLook,
    look_at_all,
    look_at_image,
    look_at_mask,
)
from amiss.data.window import Window, parse_window
from amiss.errors import OptionError
from amiss.run import Progress, silent
from amiss.types import ANOMALOUS, NORMAL, Record

Outlier = tuple[Path, float, float | None]
"""(path, raw score, p-value) of a normal image that looks little normal to a fitted detector."""

ASPECT_SPREAD = 1.5  # widest aspect over narrowest, above which squashing is worth a warning
_ORDER: dict[str, int] = {"error": 0, "warning": 1, "info": 2}


def check(
    source: Source,
    *,
    max_false_alarm: float = 0.01,
    window: Window | str | None = "percentile",
    outliers: Sequence[Outlier] = (),
    workers: int | None = None,
    progress: Progress = silent,
) -> Findings:
    """Look at every file of a set once and say what may spoil a fit or an evaluation.

    `source` is anything `index` takes; for its options, pass the result of `index`. `outliers`
    are shown as the normals that look least normal to a detector, when there is one.

    Raises DataError like `index`, when there is no set to look at; OptionError for a rate outside
    (0, 1). Damaged images are findings, not exceptions.
    """
    if not 0 < max_false_alarm < 1:
        raise OptionError(
            f"max_false_alarm is {max_false_alarm:g}; allowed is above 0 and below 1."
        )
    dataset = index(source)
    if isinstance(window, str):
        window = parse_window(window)
    paths = list(dict.fromkeys(record.path for record in dataset.records))
    look = partial(look_at_image, window=window)
    images = look_at_all(look, paths, "images", workers, progress)
    mask_paths = list(dict.fromkeys(mask for r in dataset.records for mask in r.masks))
    masks = look_at_all(look_at_mask, mask_paths, "masks", workers, progress)
    found = _unreadable(images)
    found += _mask_findings(dataset, images, masks)
    readable = {path: image for path, image in images.items() if image.error is None}
    exact = same_groups([(i.file_hash, i.pixel_hash) for i in readable.values()])
    found += _duplicates(dataset, list(readable), exact)
    found += _near_duplicates(dataset, list(readable.values()), exact)
    found += _appearance(dataset, readable)
    # Copies count once: a second copy tells nothing new about what normal images look like.
    first = {position: group[0] for group in exact for position in group}
    places = {path: first.get(position, position) for position, path in enumerate(readable)}
    n = len({(places[r.path], r.crop) for r in dataset.train if r.path in readable})
    found += _numbers(dataset, n, max_false_alarm)
    found += _outliers(outliers)
    found.sort(key=lambda finding: _ORDER[finding.severity])  # stable: keeps the order above
    return Findings(dataset, tuple(found), 1 / (n + 1))


_REASONS = {
    "missing": "do not exist",
    "empty": "are empty (0 bytes)",
    "unreadable": "cannot be opened",
    "not-an-image": "are no images",
    "truncated": "are cut off",
    "damaged": "are damaged",
    "animated": "hold several frames or pages",
    "too-large": "announce more pixels than is safe to decode",
}


def _unreadable(images: dict[Path, ImageLook]) -> list[Finding]:
    by_reason: defaultdict[str, list[ImageLook]] = defaultdict(list)
    for image in images.values():
        if image.error is not None:
            by_reason[image.reason].append(image)
    return [
        Finding(
            "error",
            reason,
            f"{number(len(some), 'image file')} {_REASONS[reason]}.",
            tuple(image.path for image in some),
            some[0].error.hint if some[0].error is not None and some[0].error.hint else "",
        )
        for reason, some in sorted(by_reason.items())
    ]


def _mask_findings(
    dataset: Dataset, images: dict[Path, ImageLook], masks: dict[Path, MaskLook]
) -> list[Finding]:
    """Masks missing, spare, unreadable, of another size, empty, of several values, on normals."""
    paired = [(r, masks[mask]) for r in dataset.records for mask in r.masks]
    readable = [(record, mask) for record, mask in paired if mask.error is None]
    judged = [r for r in dataset.test if r.label == ANOMALOUS]
    missing = [r.path for r in judged if r.mask is None] if dataset.has_masks else []
    unreadable = [mask.path for _, mask in paired if mask.error is not None]
    other_size = [
        mask.path
        for record, mask in readable
        if images[record.path].error is None and images[record.path].size != mask.size
    ]
    return [
        *about(
            missing,
            ("warning", "mask-missing"),
            "{} of the anomalous test split without a mask, where others have one.",
            "Pixel metrics need all of them. Is the mask named like its image?",
        ),
        *about(
            dataset.spare_masks,
            ("warning", "mask-orphan"),
            "{} that belong to no image.",
            "A mask is named like its image, with or without _mask, in a folder per kind.",
            "mask",
        ),
        *about(
            unreadable,
            ("error", "mask-unreadable"),
            "{} that cannot be read.",
            "Draw or copy them again.",
            "mask",
        ),
        *about(
            other_size,
            ("error", "mask-size"),
            "{} of another size than the image.",
            "A mask has the height and width of its image.",
            "mask",
        ),
        *_mask_values(readable),
    ]


def _mask_values(readable: list[tuple[Record, MaskLook]]) -> list[Finding]:
    """Masks whose values, or whose emptiness, do not fit."""
    clear = [(r, mask) for r, mask in readable if not (mask.is_ambiguous or mask.is_picture)]
    # A crop of a strip is anomalous because its part of the mask is not empty.
    whole = [(record, mask) for record, mask in clear if record.crop is None]
    return [
        *about(
            [mask.path for _, mask in readable if mask.is_ambiguous],
            ("error", "mask-values"),
            "{} whose largest value is neither 1 nor 255.",
            "Write defect pixels as 255 and all others as 0.",
            "mask",
        ),
        *about(
            [mask.path for _, mask in readable if mask.is_picture],
            ("error", "mask-picture"),
            "{} of many gray levels, like a photograph or a heat map.",
            "A mask holds two values, one for defect pixels and one for all others.",
            "mask",
        ),
        *about(
            [m.path for record, m in whole if record.label == ANOMALOUS and m.positive == 0],
            ("warning", "mask-empty"),
            "{} of anomalous images without a positive pixel.",
            "Either the image is normal or the defect was not drawn.",
            "mask",
        ),
        *about(
            [m.path for record, m in whole if record.label == NORMAL and m.positive > 0],
            ("error", "mask-on-normal"),
            "{} of normal images with positive pixels.",
            "Either the image is anomalous or the mask belongs to another one.",
            "mask",
        ),
        *about(
            [mask.path for _, mask in clear if mask.levels > 2],
            ("info", "mask-levels"),
            "{} of more than two values; above the middle (127 of 255) counts as positive.",
            "",
            "mask",
        ),
    ]


def _duplicates(dataset: Dataset, paths: list[Path], exact: list[list[int]]) -> list[Finding]:
    """Files with the same content or the same pixels."""
    sides = _sides(dataset)
    found = []
    listed = Counter((record.path, record.crop) for record in dataset.records)
    grouped = {position for group in exact for position in group}
    twice = {path for (path, _), times in listed.items() if times > 1}
    again = [[n] for n, path in enumerate(paths) if path in twice and n not in grouped]
    for group in [*exact, *again]:
        files = tuple(paths[position] for position in group)
        labels = {label for file in files for _, label in sides[file]}
        splits = {split for file in files for split, _ in sides[file]}
        if {NORMAL, ANOMALOUS} <= labels:
            found.append(
                Finding(
                    "error",
                    "label-conflict",
                    f"The same image is labelled normal and anomalous ({_said(files, sides)}).",
                    files,
                    "Decide which it is and remove the other file.",
                )
            )
        if {"train", "test"} <= splits:
            found.append(
                Finding(
                    "error",
                    "duplicate-across",
                    f"The same image is in train and test ({_said(files, sides)}).",
                    files,
                    "Remove one: an image seen in training says nothing in a test.",
                )
            )
        elif labels != {NORMAL, ANOMALOUS}:
            found.append(
                Finding(
                    "warning",
                    "duplicate",
                    f"The same image is there more than once ({_said(files, sides)}).",
                    files,
                    "Keep one: copies count double in thresholds and metrics.",
                )
            )
    return found


def _near_duplicates(
    dataset: Dataset, looks: list[ImageLook], exact: list[list[int]]
) -> list[Finding]:
    """Images that show the same thing again, one file standing for its exact copies."""
    copies = {position for group in exact for position in group[1:]}
    kept = [look for position, look in enumerate(looks) if position not in copies]
    thumbs = [look.thumb for look in kept if look.thumb is not None]
    groups = near_groups(np.stack(thumbs)) if thumbs else []
    sides = _sides(dataset)
    found = []
    for group in groups:
        files = tuple(kept[position].path for position in group)
        across = {"train", "test"} <= {split for file in files for split, _ in sides[file]}
        found.append(
            Finding(
                "warning" if across else "info",
                "near-duplicate-across" if across else "near-duplicate",
                f"{len(files)} images look the same but for light or encoding "
                f"({_said(files, sides)}).",
                files,
                "If they show one object twice, keep them in one split." if across else "",
            )
        )
    return found


def _appearance(dataset: Dataset, images: dict[Path, ImageLook]) -> list[Finding]:
    """Sizes, aspects, modes, constant images and odd brightness."""
    found: list[Finding] = []
    if not images:
        return []
    sizes = Counter(image.size for image in images.values())
    aspects = [width / height for height, width in sizes]
    if len(sizes) > 1:
        (h0, w0), (h1, w1) = min(sizes, key=math.prod), max(sizes, key=math.prod)
        message = f"{len(sizes)} image sizes (height x width), from {h0} x {w0} to {h1} x {w1}."
        found.append(Finding("info", "sizes", message))
    if max(aspects) / min(aspects) > ASPECT_SPREAD:
        found.append(
            Finding(
                "warning",
                "aspects",
                f"Width over height goes from {min(aspects):.2f} to {max(aspects):.2f}: squashing "
                "to one size distorts these images differently.",
                hint='If shape matters, use resize mode "letterbox".',
            )
        )
    modes = Counter(image.mode for image in images.values())
    if len(modes) > 1:
        listed = ", ".join(f"{mode} {n}" for mode, n in modes.most_common())
        found.append(Finding("info", "modes", f"Pixel formats differ: {listed}."))
    deep = sum(n for mode, n in modes.items() if mode.startswith("I") or mode == "F")
    if deep:
        message = f"{number(deep, 'image')} with more than 8 bits go through the intensity window."
        hint = "With a fixed exposure, give the window as LOW:HIGH, so that brightness counts."
        found.append(Finding("info", "deep", message, hint=hint))
    found += about(
        [path for path, image in images.items() if image.is_constant],
        ("warning", "constant"),
        "{} of a single colour.",
        "A covered lens or a failed exposure?",
    )
    return found + _brightness([images[r.path] for r in dataset.train if r.path in images])


def _brightness(train: list[ImageLook]) -> list[Finding]:
    """Training normals whose mean is far from the others', by median and median deviation."""
    if not train:
        return []
    means = np.array([image.mean for image in train])
    deviation = np.abs(means - np.median(means))
    # 1.4826 makes the median deviation of a normal distribution its standard deviation.
    limit = max(10.0, 6 * 1.4826 * float(np.median(deviation)))
    odd = dict.fromkeys(i.path for i, d in zip(train, deviation, strict=True) if d > limit)
    return about(
        list(odd),
        ("info", "brightness"),
        "{} among the training normals much darker or brighter than the rest.",
        "Look at them: were they taken in the same light?",
    )


def _numbers(dataset: Dataset, n: int, max_false_alarm: float) -> list[Finding]:
    """Whether there are enough normals for the false-alarm rate, and anything to judge."""
    found = []
    # p = (1 + #{s_i >= s}) / (n + 1) can only reach alpha when 1 / (n + 1) <= alpha. The small
    # amount is taken off before rounding up because 1 / 0.05 may come out above 20.
    needed = math.ceil(1 / max_false_alarm - 1e-9) - 1
    if n == 0:
        message = "There is no normal training image that can be read."
        found.append(Finding("error", "no-normals", message, hint="A fit needs normal images."))
    elif n < needed:
        found.append(
            Finding(
                "warning",
                "too-few-normals",
                f"{number(n, 'different normal training image')} support a false-alarm rate of "
                f"{1 / (n + 1):.2g} at best; {max_false_alarm:g} needs {needed}.",
                hint=f"Add {needed - n} normal images, or ask for {_round_up(1 / (n + 1)):g}.",
            )
        )
    labels = {record.label for record in dataset.test}
    if dataset.test and not {NORMAL, ANOMALOUS} <= labels:
        names = " and ".join(LABEL_NAMES[label] for label in sorted(labels, key=str))
        message = f"The test split holds only {names} images: AUROC and AP are undefined."
        found.append(Finding("info", "one-sided-test", message))
    return found


def _outliers(outliers: Sequence[Outlier]) -> list[Finding]:
    return [
        Finding(
            "info",
            "least-normal",
            f"A normal image that looks little normal: score {score:.4g}"
            + ("." if p_value is None else f", p = {p_value:.3g}."),
            (path,),
            "Look at it: a defect among the normals hides its like.",
        )
        for path, score, p_value in outliers
    ]


def _sides(dataset: Dataset) -> dict[Path, list[tuple[str | None, int | None]]]:
    """path -> the splits and labels under which it is listed."""
    sides: defaultdict[Path, list[tuple[str | None, int | None]]] = defaultdict(list)
    for record in dataset.records:
        sides[record.path].append((record.split, record.label))
    return sides


def _said(files: Sequence[Path], sides: dict[Path, list[tuple[str | None, int | None]]]) -> str:
    """ "train normal, test anomalous 2" """
    counts = Counter(f"{split} {LABEL_NAMES[label]}" for f in files for split, label in sides[f])
    return ", ".join(f"{side} {n}" if n > 1 else side for side, n in sorted(counts.items()))


def _round_up(rate: float) -> float:
    """To two digits, upwards, so that the rate that is advised is one that works."""
    step = 10 ** (math.floor(math.log10(rate)) - 1)
    return float(math.ceil(rate / step - 1e-9) * step)
