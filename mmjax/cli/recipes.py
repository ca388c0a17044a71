"""`mmjax recipes`: lists the shipped recipes, and copies one to edit and train."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from mmjax import console
from mmjax.cli import listing, options
from mmjax.config.error import ConfigError, nearest

__all__ = ["copy", "parser", "run"]

SHARED = "common.py"  # code shared by the recipes of a family


def parser() -> options.Parser:
    """The command line."""
    text = "The recipes that mmjax brings, and a copy of one to change and to train."
    made = options.parser("recipes", "[copy NAME [--out DIR]]", text)
    text = "put a recipe into a folder of yours; without it, recipes are listed"
    made.add_argument("what", nargs="?", choices=["copy"], metavar="copy", help=text)
    made.add_argument("name", nargs="?", metavar="NAME", help="such as quickstart")
    made.add_argument("--out", default="configs", metavar="DIR", help="in place of ./configs")
    return made


def run(args: list[str]) -> None:
    """Recipes that come with mmjax, and copies of them."""
    given = parser().parse_args(args)
    if given.what is None:
        print(console.visible(_text()))
        return
    if given.name is None:
        raise ConfigError("copy NAME: the name is missing; `mmjax recipes` lists them.")
    copied = copy(given.name, given.out)
    commands = [f"  {command}" for command in copied.values() if command]
    print(console.visible("\n".join([*map(str, copied), "to train it:", *commands])))


def copy(name: str, out: str | os.PathLike[str] = "configs") -> dict[Path, str]:
    """Copies a recipe, the recipes that it needs, and `common.py` of their families.

    Returns the files, each with the command that trains it ("" for common.py), in training order.
    Existing files with the same text are left as they are.

    Raises ConfigError for an unknown name, and if a file exists with another text.
    """
    base = listing.shipped()
    known = {n: p for n, p in listing.recipe_files([base]).items() if listing.header(p)}
    copied: dict[Path, str] = {}
    for member in _with_needs(name.removeprefix("configs/").removesuffix(".py"), known):
        source, target = known[member], Path(out, f"{member}.py")
        if re.search(rf"load_module\(\s*[\"']{re.escape(SHARED)}[\"']", source.read_text()):
            copied[target.with_name(SHARED)] = ""
        file = shlex.quote(str(target))
        command = listing.header(source).get("command") or f"mmjax train {file} --workdir runs/own"
        copied[target] = command.replace(f"configs/{member}.py", file)
    texts = {target: (base / target.relative_to(out)).read_bytes() for target in copied}
    for target, text in texts.items():
        if os.path.lexists(target) and not (target.is_file() and target.read_bytes() == text):
            raise ConfigError(
                f"{target} is there already and differs from the recipe; rename it, or choose"
                " another folder by --out."
            )
    for target, text in texts.items():
        _write(target, text)
    return copied


def _with_needs(name: str, known: dict[str, Path]) -> list[str]:
    """The recipes that a recipe needs, then the recipe itself."""
    if name not in known:
        raise ConfigError(f"no recipe {name!r}{nearest(name, known)}")
    needs = listing.header(known[name]).get("needs", "").split()
    return [*(member for need in needs for member in _with_needs(need, known)), name]


def _write(target: Path, text: bytes) -> None:
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as file:  # never overwrites a file created meanwhile
            file.write(text)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(
            f"{error.filename} is in the way; choose another folder by --out."
        ) from error


def _text() -> str:
    """The recipes as text."""
    base = listing.shipped()
    headers = {n: listing.header(p) for n, p in listing.recipe_files([base]).items()}
    rows = {n: header["does"] for n, header in headers.items() if header}
    width = max(map(len, rows), default=0)
    lines = [f"{name:{width}}  {does}" for name, does in rows.items()]
    return "\n".join(
        [*lines, "", "mmjax recipes copy NAME puts one into ./configs; change it there."]
    )
