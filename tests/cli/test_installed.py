"""Verbs that installed packages bring: real metadata on the path, commands as a user runs them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import commands
import pytest

import mmjax
from mmjax import cli
from mmjax.cli import installed

GREET = '''
from pathlib import Path
from mmjax import ConfigError

Path(__file__).with_suffix(".mark").touch()

def greet(args):
    """Greets."""
    if args == ["wrong"]:
        raise ConfigError("args=wrong greets nobody; name someone.")
    if args == ["bug"]:
        raise ValueError("a bug")
    if args == ["leave"]:
        raise SystemExit("left")
    print("hello", *args)
    return 3 if args == ["three"] else None

number = 7
'''


def package(folder: Path, name: str, *commands: str, group: str = "mmjax.commands") -> None:
    """The metadata that an installer writes."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *commands, ""]))


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder of packages, one of which brings `mmjax greet`."""
    folder = tmp_path / "site"
    package(folder, "mmjax-greet", "greet = greeting.parts.say:greet")
    (folder / "greeting" / "parts").mkdir(parents=True)
    (folder / "greeting" / "__init__.py").touch()
    (folder / "greeting" / "parts" / "say.py").write_text(GREET)
    return folder


def run(site: Path, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    paths = [str(Path(mmjax.__file__).parent.parent), str(site)]
    return commands.run(*args, cwd=cwd, PYTHONPATH=os.pathsep.join(paths))


def test_a_verb_of_a_package_is_listed_without_its_code_and_called_with_its_arguments(site):
    done = run(site, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n  greet           from mmjax-greet\n" in done.stdout
    assert all(f"\n  {verb} " in done.stdout for verb in cli.VERBS)
    assert not list(site.rglob("*.mark"))  # it was not imported
    done = run(site, "greet", "--help", "a", "b c")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello --help a b c\n", "")
    assert list(site.rglob("*.mark"))


@pytest.mark.parametrize(
    ("argument", "code", "said"),
    [
        ("three", 3, ""),
        ("wrong", 2, "mmjax greet: args=wrong greets nobody; name someone.\n"),
        ("leave", 1, "left\n"),
    ],
)
def test_how_a_verb_of_a_package_ends(argument, code, said, site):
    done = run(site, "greet", argument)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_bug_of_a_package_keeps_its_traceback(site):
    done = run(site, "greet", "bug")
    assert done.returncode == 1
    assert "ValueError: a bug" in done.stderr


def test_a_mistyped_verb_of_a_package(site):
    done = run(site, "gret")
    assert done.returncode == 2
    assert done.stderr == "mmjax: no command 'gret'; did you mean 'greet'?\n"


WRONG = {  # entry point -> what is said of it, where that is seen without an import
    "info = greeting.parts.say:greet": "'info' of package mmjax-wrong: mmjax has a command of that",
    "gone = nowhere.at:all": "'gone' of package mmjax-wrong: there is no module nowhere.at",
    "deep = greeting.none:greet": "'deep' of package mmjax-wrong: there is no module greeting.none",
    "under = greeting.parts.say.on:f": "there is no module greeting.parts.say.on",
    "plain = greeting": "'plain' of package mmjax-wrong: greeting is no module:function",
    "dots = ..:f": "'dots' of package mmjax-wrong: there is no module ..",
    "two words = greeting.parts.say:greet": "package mmjax-wrong: its name is not of letters,",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_verb_that_cannot_be_called_is_named_in_a_line_and_the_others_work(line, site):
    package(site, "mmjax-wrong", line)
    done = run(site, "--help")
    assert done.returncode == 0
    assert done.stderr.startswith("mmjax: command ")
    assert done.stderr.count("\n") == 1
    assert WRONG[line] in done.stderr
    assert "from mmjax-greet" in done.stdout
    assert "from mmjax-wrong" not in done.stdout
    name = line.partition(" = ")[0]
    called = run(site, name, "--help")
    if name in cli.VERBS:  # the one of mmjax
        assert (called.returncode, called.stderr) == (0, "")
        assert called.stdout.startswith(f"usage: mmjax {name}")
    else:
        assert (called.returncode, called.stderr) == (2, done.stderr)
    assert run(site, "greet").stdout == "hello\n"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("raises:f", "raises:f does not import: RuntimeError: no \\x1b[2J driver"),
        ("leaves:f", "leaves:f does not import: SystemExit: 5"),
        ("greeting:absent", "greeting:absent does not import: AttributeError: "),
        ("greeting.parts.say:number", "greeting.parts.say:number is of type int, no function"),
    ],
)
def test_a_verb_that_does_not_import_says_why_when_it_is_called(target, said, site):
    package(site, "mmjax-wrong", f"wrong = {target}")
    (site / "raises.py").write_text("raise RuntimeError('no \\x1b[2J driver')")
    (site / "leaves.py").write_text("raise SystemExit(5)")
    done = run(site, "wrong")
    assert done.returncode == 2
    assert done.stderr.startswith(f"mmjax: command 'wrong' of package mmjax-wrong: {said}")
    assert done.stderr.count("\n") == 1
    assert run(site, "greet").stdout == "hello\n"


def test_of_two_packages_with_one_verb_neither_is_chosen(site):
    package(site, "mmjax-other", "greet = greeting.parts.say:greet")
    done = run(site, "--help")
    assert "package mmjax-other has one of that name too" in done.stderr
    assert "package mmjax-greet has one of that name too" in done.stderr
    assert done.stderr.count("\n") == 2
    assert "from mmjax-" not in done.stdout
    assert run(site, "greet").returncode == 2


def test_damaged_metadata_are_told_and_the_others_work(site):
    package(site, "mmjax-wrong", "no value")
    done = run(site, "--help")
    assert done.returncode == 0
    assert "its metadata cannot be read" in done.stderr
    assert done.stderr.count("\n") == 1
    assert run(site, "greet").stdout == "hello\n"


def test_metadata_of_the_working_folder_are_not_looked_at(site, tmp_path):
    package(tmp_path / "work", "mmjax-planted", "planted = greeting.parts.say:greet")
    package(site, "another", "inspect = greeting.parts.say:greet", group="other.commands")
    done = run(site, "--help", cwd=tmp_path / "work")  # `python -m` puts it first on the path
    assert "planted" not in done.stdout + done.stderr
    assert "inspect" not in done.stdout
    assert "from mmjax-greet" in done.stdout
    assert run(site, "planted", cwd=tmp_path / "work").returncode == 2


def test_a_package_that_is_there_twice_is_taken_once(site, monkeypatch, tmp_path):
    package(tmp_path / "later", "mmjax-greet", "greet = greeting.parts.say:greet")
    monkeypatch.syspath_prepend(str(tmp_path / "later"))
    monkeypatch.syspath_prepend(str(site))
    (verb,) = [v for v in installed.verbs(cli.VERBS) if v.package == "mmjax-greet"]
    assert verb == installed.Verb(
        name="greet", package="mmjax-greet", target="greeting.parts.say:greet"
    )
