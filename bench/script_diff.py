"""How many lines a system asks of a training script: code lines that differ from `rivals/plain.py`, counted."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

from bench.place import ROOT

PLAIN = ROOT / "bench" / "rivals" / "plain.py"


def code_lines(source: str) -> list[str]:
    """The code one statement per line, without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return [line for line in ast.unparse(tree).splitlines() if line.strip()]


def lines_changed(script: Path, plain: Path = PLAIN) -> int:
    """Lines added, removed or replaced (a replaced one counts once)."""
    before, after = code_lines(plain.read_text()), code_lines(script.read_text())
    changes = difflib.SequenceMatcher(a=before, b=after, autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in changes if tag != "equal")
