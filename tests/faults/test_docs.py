"""docs/reliability.md names tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
ROWS = [row.split("|")[1:-1] for row in PAGE.splitlines() if row.startswith("| ") and not row.startswith("| Fault |")]


def cited_from(path: Path) -> tuple[list[str], set[object]]:
    """Return the names of the tests in a file, and the values it names, without importing it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return names, {node.value for node in nodes if isinstance(node, ast.Constant)}


def test_every_fault_is_shown_by_tests_that_exist():
    assert len(ROWS) > 15
    for fault, _, shown in ROWS:
        cited = re.findall(r"(tests/[\w/]+\.py)((?:(?!tests/)[^|])*)", shown)
        assert cited, f"{fault}: no test"
        for path, rest in cited:
            names, values = cited_from(ROOT / path)
            parts = re.findall(r"`(\w+)(?:\[(\w+)\])?`", rest)
            assert parts, f"{fault}: {path} without a test's name"
            for part, parameter in parts:
                assert any(part in name for name in names), f"{fault}: {path} has no test named {part}"
                assert not parameter or parameter in values, f"{fault}: {path} does not know {parameter}"


def test_every_command_and_key_that_it_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in re.findall(r"`make ([a-z-]+)", PAGE))
    recovery = (ROOT / "platform" / "slingstone" / "config" / "recovery.py").read_text()
    keys = set(re.findall(r"recovery\.(\w+)", PAGE))
    assert keys
    assert all(re.search(rf"^    {key}:", recovery, re.MULTILINE) for key in keys)
