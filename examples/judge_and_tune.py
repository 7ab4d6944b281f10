"""Judge a detector on labelled images, then ask for fewer false alarms, without fitting again.

python examples/judge_and_tune.py part.amiss photos/
"""

from __future__ import annotations

import sys

import amiss
from amiss.recalibrate import recalibrate


def main(artifact: str, data: str) -> None:
    """Print recall and false alarms at two thresholds."""
    detector = amiss.load(artifact)
    for rate in (0.2, 0.05):
        calibration = recalibrate(detector, max_false_alarm=rate)
        point = amiss.evaluate(detector, data).operating_point
        print(
            f"at most {calibration.alpha:.0%} false alarms: "
            f"{point['detected']} of {point['n_anomalous']} caught, "
            f"{point['false_alarms']} of {point['n_normal']} false alarms"
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
