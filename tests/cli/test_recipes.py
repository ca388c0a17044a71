"""Recipes that mmjax brings: found anywhere, copied whole, never over somebody's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmjax import cli, config
from mmjax.cli import listing
from mmjax.cli import recipes as recipes_lib

ROOT = Path(__file__).resolve().parents[2]
RECIPE = '''"""A recipe.

status: simplified
needs: {needs}
command: mmjax train configs/{name}.py:get_config --workdir runs/it
"""
{code}
'''


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def brought(tmp_path, monkeypatch) -> Path:
    """Recipes of one family, that stand in for those that mmjax brings."""
    family = tmp_path / "brought" / "fam"
    family.mkdir(parents=True)
    (family / "common.py").write_text("X = 1\n")
    shared = 'from mmjax import config\ncommon = config.load_module("common.py", beside=__file__)'
    (family / "one.py").write_text(RECIPE.format(name="fam/one", needs="", code=shared))
    (family / "two.py").write_text(RECIPE.format(name="fam/two", needs="fam/one", code=""))
    monkeypatch.setattr(listing, "shipped", lambda: family.parent)
    return family


def test_a_copy_is_the_recipe_with_what_it_needs_and_loads(here, capsys):
    assert cli.main(["recipes", "copy", "quickstart"]) == 0
    for name in ("quickstart", "quickstart_tokenizers"):
        copied = here / "configs" / f"{name}.py"
        assert copied.read_bytes() == (ROOT / "configs" / f"{name}.py").read_bytes()
    assert config.load("configs/quickstart.py").name == "quickstart"
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["configs/quickstart_tokenizers.py", "configs/quickstart.py", "to train it:"]
    assert "train-tokenizer configs/quickstart_tokenizers.py:image" in said[3]
    assert said[3].endswith(" --workdir runs/demo_tokenizers/image")
    assert said[4].strip() == "mmjax train configs/quickstart.py --workdir runs/demo"


def test_a_family_brings_the_file_that_it_shares(here, brought, capsys):
    found = recipes_lib.copy("configs/fam/two.py", "my own")
    assert {str(file): command for file, command in found.items()} == {
        "my own/fam/common.py": "",
        "my own/fam/one.py": "mmjax train 'my own/fam/one.py':get_config --workdir runs/it",
        "my own/fam/two.py": "mmjax train 'my own/fam/two.py':get_config --workdir runs/it",
    }
    for file in found:
        assert (here / file).read_bytes() == (brought / file.name).read_bytes()
    assert config.load_module("my own/fam/one.py").common.X == 1


def test_a_file_that_differs_stays_and_nothing_is_copied(here, brought, capsys):
    mine = here / "configs" / "fam" / "two.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert cli.main(["recipes", "copy", "fam/two"]) == 2
    assert "configs/fam/two.py is there already and differs" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert list(mine.parent.iterdir()) == [mine]
    mine.unlink()
    mine.symlink_to(here / "elsewhere")  # leads to where nothing is yet
    assert cli.main(["recipes", "copy", "fam/two"]) == 2
    assert not (here / "elsewhere").exists()
    mine.unlink()
    assert cli.main(["recipes", "copy", "fam/two"]) == 0
    written = mine.stat().st_mtime_ns
    assert cli.main(["recipes", "copy", "fam/two"]) == 0  # the same text is no conflict
    assert mine.stat().st_mtime_ns == written
    (here / "file").touch()
    assert cli.main(["recipes", "copy", "fam/two", "--out", "file"]) == 2
    assert "is in the way" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["copy", "quikstart"], "no recipe 'quikstart'; did you mean 'quickstart'?"),
        (["copy", "../quickstart"], "no recipe '../quickstart'"),
        (["copy"], "copy NAME: the name is missing"),
        (["move", "quickstart"], "invalid choice: 'move'"),
    ],
)
def test_mistakes_are_told(here, capsys, args, message):
    assert cli.main(["recipes", *args]) == 2
    assert message in capsys.readouterr().err
    assert not list(here.iterdir())


def test_recipes_are_listed_from_both_places_and_the_copy_counts(here, brought, capsys):
    recipes_lib.copy("fam/one")
    (here / "configs" / "mine.py").write_text(RECIPE.format(name="mine", needs="", code=""))
    assert [item["name"] for item in listing.recipes()] == [
        "configs/fam/one.py", str(brought / "two.py"), "configs/mine.py",
    ]  # fmt: skip
    assert cli.main(["recipes"]) == 0
    assert capsys.readouterr().out.startswith("fam/one  A recipe.\nfam/two  A recipe.\n\n")
