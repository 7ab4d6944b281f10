"""Take a fitted detector off the training machine, with a proof that it still says the same."""

from amiss.export.exporting import Exported, export

__all__ = ["Exported", "export"]
