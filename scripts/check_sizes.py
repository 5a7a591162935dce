"""Fails on a source file of more than 350 lines, on a function of more than 40 outside the commands, and on a line of
more than 120 characters (ruff excuses those that end with a comment for a tool, and words without a space).

python scripts/check_sizes.py FOLDER...     names each finding with its size, those that KNOWN allows excepted
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MOST_LINES_OF_A_FILE = 350
MOST_LINES_OF_A_FUNCTION = 40
MOST_CHARACTERS_OF_A_LINE = 120
COMMANDS = ("cli", "cli.py", "cli_run.py", "chat.py")  # a command's options are its lines

# What may be longer, with its present size: what grows beyond it fails like anything else. This list only shrinks.
KNOWN: dict[str, int] = {
    # A jit kernel is one function by nature: what it calls is compiled into it, and its loop is one thought.
    "gptoss_adapters/mxfp4/triton_kernels.py:_partial_rows": 43,
    "gptoss_adapters/mxfp4/triton_kernels.py:_tile": 47,
}


class Finding(NamedTuple):
    key: str  # PATH, or PATH:FUNCTION, as in KNOWN
    words: str
    size: int  # in lines


def find_long_functions(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    """(name, its line, its length without decorators and docstring)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1 - count_docstring_lines(node)
            if length > MOST_LINES_OF_A_FUNCTION:
                yield node.name, node.lineno, length


def count_docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(node) is None:
        return 0
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1


def find(path: Path) -> Iterator[Finding]:
    text = path.read_text()
    lines = text.count("\n")
    if lines > MOST_LINES_OF_A_FILE:
        yield Finding(str(path), f"{path}: {lines} lines (at most {MOST_LINES_OF_A_FILE})", lines)
    for n, line in enumerate(text.splitlines(), 1):
        if len(line) > MOST_CHARACTERS_OF_A_LINE:
            yield Finding(f"{path}:{n}", f"{path}:{n}: {len(line)} characters", len(line))
    if set(path.parts) & set(COMMANDS):
        return
    for name, first, length in find_long_functions(ast.parse(text)):
        words = f"{path}:{first}: {name} has {length} lines (at most {MOST_LINES_OF_A_FUNCTION})"
        yield Finding(f"{path}:{name}", words, length)


def main(folders: list[str]) -> int:
    files = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    findings = [finding for path in files for finding in find(path)]
    sizes = {finding.key: finding.size for finding in findings}
    too_long = [finding for finding in findings if finding.size > KNOWN.get(finding.key, 0)]
    for finding in too_long:
        print(finding.words)
    looked_at = [key for key in KNOWN if key.startswith(tuple(f"{Path(folder)}/" for folder in folders))]
    for key in looked_at:
        if key not in sizes:
            print(f"{key}: no longer too long: take it off KNOWN")
        elif sizes[key] < KNOWN[key]:
            print(f"{key}: has shrunk from {KNOWN[key]} to {sizes[key]} lines: say so in KNOWN")
    return int(bool(too_long))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
