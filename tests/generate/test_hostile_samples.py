"""A folder of samples of a stranger: `mmjax generate` removes and shows nothing outside of it."""

from __future__ import annotations

import json
import os

import pytest

from mmjax.config import ConfigError
from mmjax.generate import verbs


def planted(folder, *files, **more):
    samples = [{"index": i, "files": {"image": name}} for i, name in enumerate(files)]
    document = {"request": {"seed": 1}, "samples": samples, **more}
    (folder / "samples.json").write_text(json.dumps(document))


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "mine.png").write_bytes(b"mine")
    return tmp_path / "out"


@pytest.mark.fault(
    "a samples.json that names files outside of its folder, with --overwrite",
    "it counts as no samples.json of ours: nothing is removed",
)
@pytest.mark.parametrize("name", ["../mine.png", "a/../../mine.png", "..", "", ".hidden", "\0"])
def test_files_outside_of_a_folder_of_samples_are_not_removed(name, out, tmp_path):
    planted(out, name)
    with pytest.raises(ConfigError, match="holds files that are no samples"):
        verbs._former(out, overwrite=False)
    before = verbs._former(out, overwrite=True)
    assert before is None
    assert verbs._begun(out, before, {"seed": 2}, overwrite=True) == {}
    assert (tmp_path / "mine.png").read_bytes() == b"mine"


def test_an_absolute_name_in_samples_is_not_removed(out, tmp_path):
    planted(out, str(tmp_path / "mine.png"))
    assert verbs._former(out, overwrite=True) is None


@pytest.mark.parametrize(
    "more",
    [{"request": 3}, {"samples": {}}, {"samples": [3]}, {"samples": [{"index": "0", "files": {}}]},
     {"samples": [{"index": 0, "files": []}]}, {"samples": [{"index": 0, "files": {"a": 1}}]}],
)  # fmt: skip
def test_a_list_of_samples_of_other_types_is_refused(more, out):
    planted(out, **more)
    assert verbs._former(out, overwrite=True) is None


@pytest.mark.timeout(30)
def test_links_out_of_a_folder_of_samples_count_as_absent(out, tmp_path):
    for name in ("image_0.png", "image_1.png"):
        (out / name).write_bytes(b"ours")
    (out / "image_2.png").symlink_to(tmp_path / "mine.png")
    os.mkfifo(out / "image_3.png")
    planted(out, *(f"image_{i}.png" for i in range(5)))
    before = verbs._former(out, overwrite=False)
    assert list(verbs._begun(out, before, {"seed": 1}, overwrite=False)) == [0, 1]
    assert verbs._begun(out, before, {"seed": 2}, overwrite=True) == {}
    assert not (out / "image_0.png").exists()
    assert (tmp_path / "mine.png").read_bytes() == b"mine"
