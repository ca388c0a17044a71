"""`mmjax recipes`: the recipes that mmjax brings, and a copy of one to change and to train."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from pathlib import Path

from mmjax import listing, printing
from mmjax.config.error import ConfigError, nearest

__all__ = ["USAGE", "add_arguments", "copy", "run"]

USAGE = "[copy NAME [--out DIR]]"
SHARED = "common.py"  # of a family


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    text = "put a recipe into a folder of yours; without it, recipes are listed"
    parser.add_argument("what", nargs="?", choices=["copy"], metavar="copy", help=text)
    parser.add_argument("name", nargs="?", metavar="NAME", help="such as quickstart")
    text = "in place of ./configs"
    parser.add_argument("--out", default="configs", metavar="DIR", help=text)


def run(options: argparse.Namespace) -> None:
    """Lists the recipes, or copies one and says how it is trained."""
    if options.what is None:
        print(printing.visible(_text()))
        return
    if options.name is None:
        raise ConfigError("copy NAME: the name is missing; `mmjax recipes` lists them.")
    copied = copy(options.name, options.out)
    commands = [f"  {command}" for command in copied.values() if command]
    print(printing.visible("\n".join([*map(str, copied), "to train it:", *commands])))


def copy(name: str, out: str | os.PathLike[str] = "configs") -> dict[Path, str]:
    """Copies a recipe, what its header says that it needs, and `common.py` of their families.

    Returns the files, each with the command that trains it ("" for common.py), in the order in
    which they are trained. Files that are there already with the same text stay as they are.

    Raises ConfigError for an unknown name, and for a file that is there with another text.
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
    """What a recipe needs, and then the recipe."""
    if name not in known:
        raise ConfigError(f"no recipe {name!r}{nearest(name, known)}")
    needs = listing.header(known[name]).get("needs", "").split()
    return [*(member for need in needs for member in _with_needs(need, known)), name]


def _write(target: Path, text: bytes) -> None:
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as file:  # never over what someone has put there meanwhile
            file.write(text)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(
            f"{error.filename} is in the way; choose another folder by --out."
        ) from error


def _text() -> str:
    """The recipes for people."""
    base = listing.shipped()
    headers = {n: listing.header(p) for n, p in listing.recipe_files([base]).items()}
    rows = {n: header["does"] for n, header in headers.items() if header}
    width = max(map(len, rows), default=0)
    lines = [f"{name:{width}}  {does}" for name, does in rows.items()]
    return "\n".join(
        [*lines, "", "mmjax recipes copy NAME puts one into ./configs; change it there."]
    )
