"""What the figures of an evaluation have to be read with, in sentences."""

from __future__ import annotations

from amiss.data.index import Dataset
from amiss.data.protocols import PROTOCOLS
from amiss.runtime import Fitted
from amiss.types import ANOMALOUS, MODE_COLLAPSE, Int64


def by_chance(labels: Int64) -> str:
    """What AP and F1 are worth on these test images: guessing has them too."""
    share = float((labels == ANOMALOUS).mean())
    return (
        f"{share:.0%} of the test images are anomalous: whoever guesses has an AP of about "
        f"{share:.2f} and reaches an F1 of {2 * share / (1 + share):.2f}."
    )


def caveats(dataset: Dataset, detector: Fitted) -> list[str]:
    """What the data of the fit, and how it went, make of figures on these images."""
    fitted = detector.training_facts
    found = []
    learned_as = _normal(fitted.get("layout"), str(fitted.get("name")))
    judged_as = _normal(dataset.layout, dataset.name)
    if None not in (learned_as, judged_as) and learned_as != judged_as:
        found.append(
            f"The detector was fitted on {fitted['name']}, and judged on {dataset.name}: what was "
            "normal there is not what is normal here."
        )
    learned = detector.about().get("learned") or {}
    share = learned.get("sample_diversity")
    if share is not None and share < MODE_COLLAPSE:
        found.append(
            "The generator makes nearly the same of every code (mode collapse): its samples "
            f"differ from one another by {share:.1%} of what images do."
        )
    return found


def _normal(layout: str | None, name: str) -> tuple[bool, str] | None:
    """Which class of a protocol is apart from the others, and whether it is the anomalous one; None
    where a set goes by no protocol."""
    if layout not in PROTOCOLS:
        return None
    label = name.rpartition(f" {layout} ")[2].partition(" ")[0]
    return layout == "leave_one_out", label
