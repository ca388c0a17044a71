"""`mmjax list`: public classes of the seams, and recipes with their headers.

The header of a recipe is its docstring: a first line that describes it, then `paper:`, `kept:`,
`differs:`, `needs:` (recipes to train first), `command:`, `catalogue:` (row), `status:` (exact,
simplified, shape-only), `result:`.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mmjax
from mmjax import config, console
from mmjax.cli import options, printing
from mmjax.config.classes import seam_modules

__all__ = [
    "KINDS",
    "header",
    "listing",
    "parser",
    "recipe_files",
    "recipes",
    "run",
    "shipped",
    "text",
    "tokenizers",
]

MEASURED = Path(mmjax.__file__).resolve().parent / "tokenizers" / "measured.json"
# What makes ids of values without being a Tokenizer, which is of texts.
TOKENIZING = ("Quantizer", "Bins", "BinEdges")
KINDS = {  # kind -> base class of its seam
    "modalities": "Modality",
    "tokenizers": "Tokenizer",
    "quantizers": "Quantizer",
    "sources": "Source",
    "layouts": "Layout",
    "augmentations": "Augment",
    "schedules": "Schedule",
    "blocks": "BlockConfig",
    "routers": "Router",
    "heads": "Head",
    "stems": "Stem",
    "objectives": "Objective",
    "rules": "GradientRule",
    "optimizers": "Optimizer",
    "evaluators": "Evaluator",
}
HEADER = ("paper", "catalogue", "status", "result", "needs", "command")


def parser() -> options.Parser:
    """The command line."""
    made = options.parser("list", "[KIND] [--json]", "What there is.")
    made.add_argument(
        "kind",
        nargs="?",
        metavar="KIND",
        help=", ".join(("recipes", *KINDS)),
    )
    options.add_json(made)
    return made


def run(args: list[str]) -> None:
    """Recipes, and the classes of every seam."""
    given = parser().parse_args(args)
    listed = listing(given.kind)
    print(printing.as_json(listed) if given.json else text(listed))


def listing(kind: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """Names and descriptions by kind; None = all kinds.

    What was measured of a tokenizer is `measured`, an entry for each of its settings
    (`benchmarks/tokenizers.py`).

    Raises ConfigError for an unknown kind.
    """
    wanted = ("recipes", *KINDS)
    if kind is not None and kind not in wanted:
        raise config.ConfigError(f"list: no kind {kind!r}{config.nearest(kind, wanted)}")
    listed: dict[str, list[dict[str, Any]]] = {}
    for name in wanted if kind is None else (kind,):
        if name == "recipes":
            listed[name] = recipes()
        else:
            listed[name] = tokenizers() if name == "tokenizers" else _members(KINDS[name])
    return listed


def tokenizers() -> list[dict[str, Any]]:
    """Tokenizers of texts, quantisers and bins, with what was measured of them."""
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    rows = found.pop("tokenizers")
    items: list[dict[str, Any]] = [*_members("Tokenizer"), *_members(*TOKENIZING)]
    for item in items:
        own = [
            {"name": name, **row, **found}
            for name, row in rows.items()
            if row["class"] == item["name"]
        ]
        item |= {"measured": own} if own else {}
    return items


def recipes(folder: Path | None = None) -> list[dict[str, str]]:
    """Headers of the recipes in ./configs and of those shipped with mmjax, or of those in `folder`.

    Of two with the same name the first is used; files without a header are skipped.
    """
    files = recipe_files([folder] if folder else [Path("configs"), shipped()])
    return [{"name": str(path), **fields} for path in files.values() if (fields := header(path))]


def shipped() -> Path:
    """The folder of shipped recipes: beside the package in a checkout, else inside it."""
    package = Path(mmjax.__file__).resolve().parent
    beside = package.parent / "configs"  # in site-packages it would belong to another package
    is_checkout = beside.is_dir() and (package.parent / "pyproject.toml").is_file()
    return beside if is_checkout else package / "recipes"


def recipe_files(folders: Iterable[Path]) -> dict[str, Path]:
    """Python files by name, `family/method`, sorted by name."""
    paths: dict[str, Path] = {}
    for folder in folders:
        for path in folder.rglob("*.py"):
            paths.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return dict(sorted(paths.items()))


def header(path: Path) -> dict[str, str]:
    """What a recipe `does`, and the fields of HEADER; {} if it has no header."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    fields = {k: _field(doc, k) for k in HEADER}
    return {"does": doc.splitlines()[0], **fields} if any(fields.values()) else {}


def _field(doc: str, key: str) -> str:
    """The text after `Key:`, up to the next key or an empty line."""
    match = re.search(rf"^{key}:(.*?)(?=^\w+:|\n\s*\n|\Z)", doc, re.M | re.S | re.I)
    return " ".join(match[1].split()) if match else ""


def _members(base: str, *others: str) -> list[dict[str, str]]:
    """Public subclasses of a seam's base class, with the first line of their docstrings; and
    other classes by name."""
    members: dict[str, dict[str, str]] = {}
    for module in seam_modules():
        public: Any = getattr(module, "__all__", [n for n in vars(module) if n[0] != "_"])
        for name in public:
            cls = getattr(module, name, None)
            if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
                continue
            if cls.__module__ != module.__name__ or cls.__name__ == base:
                continue
            if name in others or base in (c.__name__ for c in cls.__mro__):
                does = (cls.__doc__ or "").strip().splitlines()[0]
                if does.startswith("Base of"):
                    continue
                members[name] = {"name": name, "does": does, "module": module.__name__}
    return [members[name] for name in sorted(members)]


def _measured(row: dict[str, Any]) -> str:
    return (
        f"{row['name']}: {100 * row['usage']:.0f} % of {row['codes']} codes in use, perplexity"
        f" {row['perplexity']:.0f}, {row['psnr']:.1f} dB PSNR after {row['steps']} steps"
        f" ({row['commit']}, {row['date']}, {row['device']})"
    )


def text(listed: dict[str, list[dict[str, Any]]]) -> str:
    """The listing as text."""
    blocks = []
    for kind, items in listed.items():
        width = max((len(i["name"]) for i in items), default=0)
        lines = [kind]
        for item in items:
            more = [f"{k}: {item[k]}" for k in HEADER if item.get(k)]
            lines.append(f"  {item['name']:{width}}  {item['does']}")
            more += [_measured(row) for row in item.get("measured", ())]
            lines += [f"  {'':{width}}  {m}" for m in more]
        blocks.append("\n".join(lines if items else [*lines, "  none"]))
    return console.visible("\n\n".join(blocks))
