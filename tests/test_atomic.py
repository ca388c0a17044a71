"""A file is whole or not there."""

from __future__ import annotations

import pytest
from etils import epath

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
