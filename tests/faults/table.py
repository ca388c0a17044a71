"""The table of docs/reliability.md, made of the `fault` marks of the tests.

python tests/faults/table.py        writes it anew
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: made by tests/faults/table.py -->\n", "<!-- end of faults -->\n"


def faults() -> list[tuple[str, str, str]]:
    """(case, outcome, test) of every mark, by file and line."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {ast.unparse(n.targets[0]): n.value for n in tree.body if isinstance(n, ast.Assign)}
        for node in ast.walk(tree):
            for mark in getattr(node, "decorator_list", ()):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    texts = (named.get(ast.unparse(a), a) for a in mark.args)
                    case, outcome = (ast.literal_eval(text) for text in texts)
                    test = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                    found.append((case, outcome, test))
    return found


def table() -> str:
    """Markdown, a row a fault."""
    rows = [f"| {c} | {o} | `{t}` |" for c, o, t in faults()]
    return "\n".join(["| what is wrong | what happens | test |", "|---|---|---|", *rows, ""])


def page() -> str:
    """The page with a table that is up to date."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
