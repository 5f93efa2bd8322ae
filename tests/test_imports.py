"""The import rule: values ← pure ← drivers ← edges, and what decides has no clock, no files, no network and no chance."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import restow

ROOT = Path(restow.__file__).parent
VALUES = {"cluster", "job", "placement", "messages", "codec", "errors", "plan"}
PURE = {"perf", "bound", "metrics", "core", "policies"}
DRIVERS = {"controller", "sim"}
HARMLESS = {
    "__future__", "bisect", "collections", "dataclasses", "enum", "functools", "hashlib", "heapq", "hmac", "inspect", "itertools",
    "math", "operator", "re", "statistics", "types", "typing", "zlib",
}  # fmt: skip
NUMBERS = {"numpy", "scipy"}  # for policies that solve programs: no clock, no files, no network, and no chance that is not seeded


def imports(part: str) -> Iterator[tuple[str, str]]:
    """(file, imported module) of one part of restow, function bodies included."""
    files = [ROOT / f"{part}.py", *(ROOT / part).rglob("*.py")]
    for file in (f for f in files if f.exists()):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from ((file.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file} imports relatively; write the whole name"
                names = (
                    [f"restow.{alias.name}" for alias in node.names] if node.module == "restow" else [node.module or ""]
                )
                yield from ((file.name, name) for name in names)


def test_values_and_what_decides_import_only_values_and_what_decides():
    for part in VALUES | PURE:
        allowed = VALUES if part in VALUES else VALUES | PURE
        for file, name in imports(part):
            top, _, rest = name.partition(".")
            harmless = HARMLESS | NUMBERS if part == "policies" else HARMLESS
            assert (rest.split(".")[0] in allowed) if top == "restow" else (top in harmless), (
                f"{part}: {file} imports {name}"
            )


def test_drivers_do_not_know_each_other_and_never_import_torch():
    for part in DRIVERS:
        for file, name in imports(part):
            other = f"restow.{(DRIVERS - {part}).pop()}"
            assert not name.startswith((other, "torch", "restow.sdk", "restow.cli")), f"{part}: {file} imports {name}"
