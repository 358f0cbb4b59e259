"""The order of the packages, who may import MLflow, and how long code may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.project import ROOT

SRC = ROOT / "src"
PACKAGE = "emotion_detection"
ORDER = (
    ("console", "paths", "files"),
    ("settings",),
    ("data",),
    ("figures",),
    ("models",),
    ("tracking",),
    ("stage",),
    ("training",),
    ("tuning",),
    ("evaluation",),
    ("labels",),
    ("inference",),
    ("cli",),
)
"""Each may import from those before it, and from its own group."""
KNOWS_MLFLOW = ("emotion_detection/tracking/", "emotion_detection/models/serving.py")
LONGEST_FUNCTION, LONGEST_FILE = 60, 500
LONGEST_STAGE, ALL_STAGES = 60, 340

MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((SRC / PACKAGE).rglob("*.py"))
}
STAGES = sorted((ROOT / "stages").glob("*.py"))
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yield the modules that `tree` imports, in functions too, and whether for types only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the order"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield (name if name in MODULES else node.module), False
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from ((name, True) for name, _ in imported(node))
        else:
            yield from imported(node)


def top(module: str) -> str | None:
    """Return the package, or the module beside the packages, that `module` is in."""
    first, *rest = module.split(".")
    return rest[0] if first == PACKAGE and rest else None


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def test_every_module_is_of_a_package_in_the_order() -> None:
    assert {top(module) for module in MODULES} - {None} <= RANK.keys()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_packages_before_its_own(module: str) -> None:
    package = top(module)
    # The package's own __init__.py has the lazy names of the Python door.
    highest = RANK["cli"] if package is None else RANK[package]
    wrong = [
        name
        for name, for_types in imported(parsed(MODULES[module]))
        if (other := top(name)) is not None
        and RANK[other] > (max(highest, RANK["cli"] - 1) if for_types else highest)
    ]
    assert wrong == []


def test_no_imports_go_in_a_circle() -> None:
    edges = {
        module: {
            name
            for name, for_types in imported(parsed(path))
            if name in MODULES and name != module and not for_types
        }
        for module, path in MODULES.items()
    }
    # Whatever imports nothing that is left is taken away; what remains is in a circle or above one.
    while done := {module for module, names in edges.items() if not names & edges.keys()}:
        edges = {module: names for module, names in edges.items() if module not in done}
    assert edges == {}


def test_mlflow_is_imported_by_tracking_alone() -> None:
    found = {
        path.relative_to(SRC).as_posix()
        for path in MODULES.values()
        if any(name.split(".")[0] == "mlflow" for name, _ in imported(parsed(path)))
    }
    assert [path for path in sorted(found) if not path.startswith(KNOWS_MLFLOW)] == []
    assert not any(
        name.split(".")[0] == "mlflow" for path in STAGES for name, _ in imported(parsed(path))
    )


def test_the_init_file_of_a_package_is_a_docstring() -> None:
    for path in (SRC / PACKAGE).glob("*/__init__.py"):
        assert ast.get_docstring(parsed(path)), path
        assert len(parsed(path).body) == 1, path


@pytest.mark.parametrize(
    "path", [*MODULES.values(), *STAGES], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_no_function_and_no_file_is_too_long(path: Path) -> None:
    functions = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in functions.items() if lines > LONGEST_FUNCTION} == {}
    assert len(path.read_text("utf-8").splitlines()) <= LONGEST_FILE


def test_stages_are_short() -> None:
    lines = {path.name: len(path.read_text("utf-8").splitlines()) for path in STAGES}
    assert {name: count for name, count in lines.items() if count > LONGEST_STAGE} == {}
    assert sum(lines.values()) <= ALL_STAGES
