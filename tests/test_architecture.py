"""The shape of the project: which way imports point, how long files are, what is public."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import amiss
from amiss.errors import AmissError
from amiss.methods import METHODS, method_class

SOURCES = Path(amiss.__file__).parent
FILES = sorted(SOURCES.rglob("*.py"))

# From the ground up: a module may import from its own layer and from those before it. The longest
# prefix counts. A module that is in none of them must be given a place.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "amiss.errors",
        "amiss.types",
        "amiss.run",
        "amiss.versions",
        "amiss.threads",
        "amiss.storage",
    ),
    ("amiss.data", "amiss.nn", "amiss.memory", "amiss.metrics"),
    ("amiss.options", "amiss.learning", "amiss.training"),
    ("amiss.methods",),
    (
        "amiss.calibration",
        "amiss.artifact",
        "amiss.manifest",
        "amiss.exported_file",
        "amiss.engines",
        "amiss.runtime",
        "amiss.outcome",
        "amiss.caveats",
    ),
    ("amiss.predict", "amiss.evaluation", "amiss.fit", "amiss.recalibrate", "amiss.frames"),
    ("amiss.found_again",),
    ("amiss.lesson",),
    ("amiss.teaching",),
    ("amiss.export", "amiss.report", "amiss.serve", "amiss.cluster"),
    (
        "amiss.console",
        "amiss.flags",
        "amiss.results",
        "amiss.sources",
        "amiss.watch",
        "amiss.cli",
        "amiss.cli_fit",
        "amiss.cli_export",
        "amiss.cli_sample",
        "amiss.cli_synth",
        "amiss.cli_teach",
        "amiss.__main__",
    ),
)

# Doors: functions that are called where a user looks for them and live further up. Each is a late
# import inside a function. (module, what it imports)
DOORS = {
    ("amiss.methods.base", "amiss.fit"),
    ("amiss.methods.base", "amiss.predict"),
    ("amiss.methods.base", "amiss.artifact"),
    ("amiss.engines", "amiss.predict"),
}


class Import(NamedTuple):
    """`module` imports `target` in line `line`; `kind` is "top", "late" or "typing"."""

    module: str
    target: str
    line: int
    kind: str


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCES.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[Import]:
    """What of amiss a file imports."""
    module = name_of(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds: dict[ast.AST, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            kinds |= dict.fromkeys(ast.walk(node), "typing")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kinds |= {inner: kinds.get(inner, "late") for inner in ast.walk(node)}
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            targets = [node.module]
            if node.module == "amiss":
                targets = [f"amiss.{alias.name}" for alias in node.names]
        for target in targets:
            if target.split(".")[0] == "amiss" and isinstance(node, ast.Import | ast.ImportFrom):
                yield Import(module, target, node.lineno, kinds.get(node, "top"))


def layer_of(module: str) -> int | None:
    places = {
        prefix: number
        for number, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    }
    return places[max(places, key=len)] if places else None


def test_every_module_has_a_place() -> None:
    homeless = [name_of(p) for p in FILES if layer_of(name_of(p)) is None]
    assert homeless == ["amiss"]  # the package itself names things of every layer, lazily


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    here = layer_of(name_of(path))
    if here is None:
        return
    wrong = []
    for found in imports_of(path):
        there = layer_of(found.target)
        assert there is not None, f"{found.target} has no layer"
        is_door = found.kind == "late" and (found.module, found.target) in DOORS
        if there > here and found.kind != "typing" and not is_door:
            wrong.append(f"line {found.line}: {found.target}")
    assert not wrong


def test_doors_are_used() -> None:
    late = {(f.module, f.target) for p in FILES for f in imports_of(p) if f.kind == "late"}
    assert late >= DOORS


def test_methods_do_not_import_each_other() -> None:
    modules = {place.split(":")[0] for place in METHODS.values()}
    for path in FILES:
        if name_of(path) in modules:
            assert not {f.target for f in imports_of(path)} & (modules - {name_of(path)})


def test_no_class_inherits_from_a_method() -> None:
    from amiss.methods.base import Detector

    for method in METHODS:
        assert method_class(method).__bases__ == (Detector,)


def test_ids_are_the_names_of_files_and_of_classes_attributes() -> None:
    for method, place in METHODS.items():
        assert place.split(":")[0] == f"amiss.methods.{method}"
        assert method_class(method).id == method


def test_only_one_file_knows_the_model_zoo() -> None:
    knows = [
        name_of(path)
        for path in FILES
        if any(
            isinstance(node, ast.Import | ast.ImportFrom) and "timm" in ast.unparse(node).split()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert knows == ["amiss.nn.backbone"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_every_file_begins_with_what_it_is_for() -> None:
    bare = [
        name_of(path)
        for path in FILES
        if not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
    ]
    assert not bare


def test_no_file_has_a_name_that_says_nothing() -> None:
    empty = {"utils", "util", "common", "helpers", "misc", "core"}
    assert not [path for path in FILES if path.stem in empty]


# --- public names ----------------------------------------------------------------------------


def test_the_public_names_are_exactly_these() -> None:
    assert amiss.__all__ == [
        "BGAD",
        "DAAD",
        "DCGAN",
        "EGBAD",
        "FYD",
        "MKD",
        "NFAD",
        "SPADE",
        "WGAN",
        "WGANGP",
        "AnoGAN",
        "AutoEncoder",
        "FAnoGAN",
        "GANomaly",
        "ImageResult",
        "MemAE",
        "PaDiM",
        "PatchCore",
        "Prediction",
        "Record",
        "Report",
        "Run",
        "UninformedStudents",
        "check",
        "evaluate",
        "load",
        "memory",
        "metrics",
        "predict_frames",
    ]
    assert dir(amiss) == sorted(amiss.__all__)
    for name in amiss.__all__:
        assert getattr(amiss, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        amiss.nothing  # noqa: B018


def test_every_method_class_is_a_public_name() -> None:
    for place in METHODS.values():
        name = place.split(":")[1]
        assert name in amiss.__all__ and getattr(amiss, name) is method_class_by_place(place)


def method_class_by_place(place: str) -> object:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def test_names_of_functions_stay_after_their_modules_are_imported() -> None:
    # `amiss.evaluate` is a function and also a module; whichever is imported first, it is called.
    code = (
        "import amiss.evaluation, amiss.predict, amiss.fit, amiss\n"
        "from amiss.evaluation import Report\n"
        "assert callable(amiss.evaluate), amiss.evaluate\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_error_is_in_the_tree_of_errors_py() -> None:
    for path in FILES:
        importlib.import_module(name_of(path))

    def below(kind: type[AmissError]) -> set[type[AmissError]]:
        return {kind}.union(*(below(k) for k in kind.__subclasses__()))

    mine = {kind for kind in below(AmissError) if kind.__module__.startswith("amiss.")}
    elsewhere = {kind.__name__ for kind in mine if kind.__module__ != "amiss.errors"}
    assert not elsewhere
    tree = (SOURCES / "errors.py").read_text(encoding="utf-8").split('"""')[1]
    assert all(kind.__name__ in tree for kind in mine)


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, amiss\n"
        "heavy = {'torch', 'numpy', 'timm', 'faiss', 'PIL', 'rich', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
