"""Made pictures, and one small fitted detector that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each process has a core to itself, and what it starts as well.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from amiss.threads import spin_briefly

spin_briefly()  # before torch is loaded: the machine may be busy with something else

import amiss  # noqa: E402
from amiss.methods.patchcore import PatchCore  # noqa: E402
from made_images import textures  # noqa: E402

TINY = {
    "backbone": "test_efficientnet",
    "weights": "random",
    "image_size": (48, 64),
    "layers": ("4", "8"),
    "coreset_ratio": 0.1,
    "folds": 4,
}
"""Options of a PatchCore that fits a dozen small images in a fraction of a second."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the tests, those of a file stay together for the fixtures that
    they share; the checks of the methods are many, and those of one method stay together."""
    for item in items:
        method = getattr(item, "callspec", None) and item.callspec.params.get("method")
        group = f"method {method}" if isinstance(method, str) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def tiny() -> dict[str, object]:
    """Options of a quick PatchCore, to be changed at will."""
    return dict(TINY)


@pytest.fixture(scope="session")
def normals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of 12 normal textures, 60 x 80 pixels. Nothing may be written into it."""
    return textures(tmp_path_factory.mktemp("normals"), 12, seed=1)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MVTec-like set: 12 normals to learn from, 6 normal and 6 defective ones with masks."""
    root = tmp_path_factory.mktemp("labelled")
    textures(root / "train" / "good", 12, seed=1)
    textures(root / "test" / "good", 6, seed=2)
    textures(root / "test" / "scratch", 4, seed=3, defects=True, masks=root / "ground_truth")
    textures(root / "test" / "hole", 2, seed=4, defects=True, masks=root / "ground_truth")
    return root


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory, labelled: Path) -> Path:
    """A detector fitted on `labelled`, in a file that nothing may change."""
    path = tmp_path_factory.mktemp("artifact") / "part.amiss"
    return PatchCore(**TINY).fit(labelled, max_false_alarm=0.1).save(path)  # type: ignore[arg-type]


@pytest.fixture
def detector(artifact: Path) -> PatchCore:
    """A detector of one's own, loaded from `artifact`."""
    loaded: PatchCore = amiss.load(artifact)
    return loaded
