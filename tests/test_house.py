"""The house rules that no linter knows: file lengths, who may import which package, no re-exports."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ldm.commands.signatures import signature

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "ldm").rglob("*.py"))
ALL_FILES = [*FILES, *sorted((ROOT / "tests").rglob("*.py")), *sorted(ROOT.glob("*.py"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MAX_LINES = 400

# Rooms that are kept to few packages; the standard library and ldm itself are always allowed.
ROOMS = {
    "ldm/interfaces.py": {"torch"},
    "ldm/randomness.py": {"torch"},
    "ldm/transfer.py": {"torch"},
    "ldm/needs.py": set(),
    "ldm/diffusion": {"torch", "scipy"},  # scipy: an assignment solver, an inverse beta function
    "ldm/nn": {"torch", "einops"},
}
# Large and optional: imported inside the one file of a room that needs them, within the function that needs them.
HEAVY = {"transformers", "open_clip", "timm", "wandb", "xformers", "diffusers", "optuna"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST) -> Iterator[str]:
    """Top-level packages imported anywhere below."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_files_stay_short() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in ALL_FILES}
    long = {path: lines for path, lines in lengths.items() if lines > MAX_LINES}
    assert not long, f"{long}: more than {MAX_LINES} lines; split by idea"


def test_files_say_what_they_are_about() -> None:
    silent = [
        name(path)
        for path in FILES
        if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent, f"{silent} begin without a docstring"


def test_packages_export_nothing_again() -> None:
    busy = [
        name(path)
        for path in FILES
        if path.name == "__init__.py" and list(imports(ast.parse(path.read_text())))
    ]
    assert not busy, f"{busy} re-export; import from the file itself"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_keep_to_their_packages(room: str) -> None:
    allowed = ROOMS[room] | set(sys.stdlib_module_names) | {"ldm"} | HEAVY
    for path in FILES:
        if name(path) == room or name(path).startswith(f"{room}/"):
            foreign = set(imports(ast.parse(path.read_text()))) - allowed
            assert not foreign, (
                f"{name(path)} imports {sorted(foreign)}; {room} is kept to {sorted(ROOMS[room])}"
            )


def test_heavy_packages_come_in_at_one_place_and_late() -> None:
    places = defaultdict(set)
    for path in FILES:
        tree = ast.parse(path.read_text())
        for package in HEAVY & set(imports(tree)):
            places[package, path.relative_to(ROOT).parts[1]].add(name(path))
        early = HEAVY & {
            package
            for node in tree.body
            for package in imports(ast.Module([node], []))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert not early, (
            f"{name(path)} imports {sorted(early)} when it is itself imported; do it where it is used"
        )
    for (package, room), files in places.items():
        assert len(files) == 1, f"{package} is imported in {sorted(files)}; one file of {room} should know it"


def targets(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def test_what_configs_build_has_closed_typed_signatures() -> None:
    named = {target for path in CONFIGS for target in targets(yaml.safe_load(path.read_text()))}
    for target in sorted(target for target in named if target.startswith("ldm.")):
        found = signature(target)
        assert found is not None, f"{target} is named by a config and defined nowhere"
        assert not found.open, f"{target} takes **kwargs: misspelt keys would go unnoticed"
        untyped = [p.name for p in found.parameters.values() if p.annotation is None]
        assert not untyped, f"{target}: {untyped} have no type"
        assert found.doc, f"{target} has no docstring"


@pytest.mark.parametrize(
    "path", [p for p in ROOT.iterdir() if p.is_file() and p.suffix in (".toml", ".txt", ".yaml")]
)
def test_no_file_names_a_registry(path: Path) -> None:
    text = path.read_text()
    assert "index-url" not in text and "find-links" not in text and "pypi.org" not in text


def test_the_quickstart_is_what_the_readme_says() -> None:
    makefile, readme = ((ROOT / name).read_text() for name in ("Makefile", "README.md"))
    commands = [
        line.removeprefix('run "').rstrip('"') for line in makefile.splitlines() if line.startswith('run "')
    ]
    commands += [
        f"python train.py experiment={line.split()[1]}"
        for line in makefile.splitlines()
        if line.startswith("train shapes")
    ]
    assert len(commands) == 5
    for command in commands:
        assert command in readme.splitlines(), f"README.md does not list: {command}"
