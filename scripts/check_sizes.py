"""Fails on a source file of more than 350 lines, and on a function of more than 40 outside the commands.

python scripts/check_sizes.py FOLDER...     names each finding with its size
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_LINES_OF_A_FILE = 350
MOST_LINES_OF_A_FUNCTION = 40
COMMANDS = ("cli", "cli.py", "cli_run.py", "chat.py")  # a command's options are its lines

# What is still too long and has an owner; this list only shrinks.
KNOWN: frozenset[str] = frozenset(
    {
        "bench/_serve_cases.py",
        "bench/convert.py",
        "bench/decode.py",
        "bench/mxfp4.py",
        "bench/parity_faults.py",
        "bench/quantize.py",
        "bench/serve.py",
        "bench/serve_compare.py",
        "bench/vllm.py",
        "converters/gptoss_converters/to_hf.py",
        "gptoss_adapters/backends/torch.py",
        "gptoss_adapters/checkpoint/formats/metal.py",
        "gptoss_adapters/mxfp4/triton_kernels.py",
        "gptoss_adapters/serve/openapi.py",
        "scripts/pocket_lessons.py",
        "scripts/train_pocket.py",
        "tests/converters/cli/test_cli_convert.py",
        "tests/converters/ollama/test_to_ollama.py",
        "tests/converters/test_matrix.py",
        "tests/harmony/grammars/test_grammar_schemas_random.py",
        "tests/harmony/openai/test_chat_completions.py",
        "tests/harmony/parsing/test_parser_tolerant.py",
        "tests/harmony/rendering/test_injection.py",
        "tests/helpers/hostile.py",
        "tests/helpers/kinds.py",
        "tests/helpers/mutants.py",
        "tests/helpers/ollama_requests.py",
        "tests/helpers/random_harmony.py",
        "tests/helpers/sample_report.py",
        "tests/kernels/test_neon.py",
        "tests/mxfp4/test_mxfp4_products.py",
        "tests/reference/test_model.py",
        "tests/serve/test_serve_client.py",
        "tests/serve/test_serve_requests.py",
        "tests/vllm_plugin/test_vllm_harmony.py",
        "tests/vllm_plugin/test_vllm_ranks.py",
    }
)


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


def check(path: Path) -> Iterator[str]:
    text = path.read_text()
    lines = text.count("\n")
    if lines > MOST_LINES_OF_A_FILE:
        yield f"{path}: {lines} lines (at most {MOST_LINES_OF_A_FILE})"
    if set(path.parts) & set(COMMANDS):
        return
    for name, line, length in find_long_functions(ast.parse(text)):
        yield f"{path}:{line}: {name} has {length} lines (at most {MOST_LINES_OF_A_FUNCTION})"


def main(folders: list[str]) -> int:
    files = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    findings = [(path, finding) for path in files for finding in check(path)]
    for _, finding in findings:
        print(finding)
    new = {str(path) for path, _ in findings} - KNOWN
    for path in sorted(KNOWN - {str(path) for path, _ in findings}):
        print(f"{path}: nothing is too long any more: take it off KNOWN")
    return int(bool(new))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
