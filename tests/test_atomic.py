"""A file is whole or not there."""

from __future__ import annotations

import jax
import mini
import pytest
from etils import epath

import mmjax
from mmjax import files


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.json"
    for target, text in ((path, "old"), (epath.Path(path), "new")):
        with files.replacing(target) as partial:
            partial.write_text(text)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text
    with pytest.raises(KeyError), files.replacing(path) as partial:  # noqa: PT012
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_mix(tmp_path):
    with files.replacing(tmp_path / "a") as one, files.replacing(tmp_path / "a") as two:
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a").read_text() == "one"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_path_that_is_given_stands_for_itself_but_for_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(files.given("~/runs/a")) == f"{tmp_path}/runs/a"
    for name in ("a b [1]", "r\u00e4der*", "./~x", "gs://bucket/~a"):
        assert str(files.given(name)).removeprefix("./") == name.removeprefix("./")


@pytest.mark.slow
def test_a_workdir_may_have_most_names(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = "my runs (1) {2} r\u00e4der"
    mmjax.train(mini.get_config(total_steps=1), f"~/{name}", devices=jax.devices()[:1])
    assert (tmp_path / name / "checkpoints" / "1" / "manifest.json").exists()
    monkeypatch.chdir(tmp_path)
    assert mmjax.load(name).step == mmjax.load(f"~/{name}@1").step == 1
    with pytest.raises(ValueError, match=r"whose name has one of \[ \] \* \?; choose a name"):
        mmjax.train(mini.get_config(), tmp_path / "run [1]")
