"""Sizes are measured once, kept, and taken from the workdir by a resume."""

from __future__ import annotations

import json
import shutil

import numpy as np
import own
import pytest

from mmjax import config
from mmjax.cli import options
from mmjax.config.error import ConfigError
from mmjax.data import found, sizes, started
from mmjax.run import records


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def data(folder, count=60, **changes):
    own.write(folder, "stems", own.records(count=count, **changes))
    return found.source_of(str(folder))


def test_the_same_data_are_measured_once(tmp_path, capfd, monkeypatch):
    first = sizes.of_source(data(tmp_path / "data"))
    said = capfd.readouterr().err
    assert "audio: seconds=" in said
    assert "warning: 5" in said  # few records
    monkeypatch.setattr(sizes, "_measured", lambda source: pytest.fail("measured again"))
    assert sizes.of_source(found.source_of(str(tmp_path / "data"))) == first
    said = capfd.readouterr().err
    assert "as measured before" in said
    assert "warning: 5" in said
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (kept,) = (tmp_path / "cache" / "mmjax" / "sizes").iterdir()
    kept.write_text("{ damaged")
    assert sizes.of_source(found.source_of(str(tmp_path / "data"))) == first


def start(root, tmp_path, monkeypatch):
    """A run of the recipe in the working folder, of which only its files are there."""
    monkeypatch.chdir(tmp_path)
    data(tmp_path / "data" / "own", count=100)
    experiment = config.load(str(root / "configs" / "own_data.py"))
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    records.write_config(tmp_path / "run", experiment)
    return experiment


def again(root, *fields):
    command = [str(root / "configs" / "own_data.py"), "--workdir", "run", *fields]
    return options.training(options.training_parser("train", "Trains"), command)[0]


def test_a_resume_takes_what_the_run_was_started_with(root, tmp_path, monkeypatch):
    experiment = start(root, tmp_path, monkeypatch)
    shutil.rmtree(tmp_path / "cache")
    for i in range(100, 160):  # larger data, of other sizes, that would make another config
        (tmp_path / "data" / "own" / f"{i}.png").write_bytes(own.png(np.zeros((9, 9, 3), np.uint8)))
        (tmp_path / "data" / "own" / f"{i}.txt").write_text("a long caption " * 30)
    monkeypatch.setattr(sizes, "_measured", lambda source: pytest.fail("measured again"))
    assert again(root) == experiment
    changed = again(root, "--total_steps", "7", "--modalities.text.max_tokens", "40")
    assert (changed.total_steps, changed.modalities["text"].max_tokens) == (7, 40)
    assert changed.sizes == experiment.sizes


def test_help_reads_no_data(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(found, "source_of", lambda data: seen.append(started.reads_data()))
    command = [str(root / "configs" / "own_data.py"), "--workdir", "run"]
    for extra in ([], ["--help"]):
        with pytest.raises((SystemExit, AttributeError)):  # there is no source
            options.training(options.training_parser("train", "Trains"), [*command, *extra])
    assert seen == [True, False]


@pytest.mark.parametrize("what", ["no checkpoint", "damaged", "not its kind", "older"])
def test_a_start_without_such_a_run_measures(what, root, tmp_path, monkeypatch):
    experiment = start(root, tmp_path, monkeypatch)
    path = tmp_path / "run" / "config.json"
    tree = json.loads(path.read_text())
    if what == "no checkpoint":
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    elif what == "damaged":
        path.write_text("{")
    elif what == "not its kind":
        tree["config"]["sizes"] = {"class": "os:system", "command": "touch owned"}
    else:
        del tree["config"]["sizes"]
    if what in ("not its kind", "older"):
        path.write_text(json.dumps(tree))
    shutil.rmtree(tmp_path / "cache")
    assert again(root) == experiment
    assert list((tmp_path / "cache" / "mmjax" / "sizes").iterdir())


def test_the_command_line_does_not_set_what_was_found(root, tmp_path, monkeypatch):
    start(root, tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=r"--sizes.max_tokens: was found, and is not set"):
        again(root, "--sizes.max_tokens", "3")


def test_modalities_that_rarely_meet_are_no_pair(tmp_path):
    data(tmp_path / "data", count=200)
    for sound in sorted((tmp_path / "data").glob("*.wav"))[1:]:
        sound.unlink()
    found_sizes = sizes.of_source(found.source_of(str(tmp_path / "data")))
    assert found_sizes.pairs == (("image", "text"),)
    assert found_sizes.modalities == ("image", "text")


def test_half_the_records_without_sound_are_pairs_all_the_same(tmp_path):
    data(tmp_path / "data", count=80)
    for sound in sorted((tmp_path / "data").glob("*.wav"))[::2]:
        sound.unlink()
    pairs = sizes.of_source(found.source_of(str(tmp_path / "data"))).pairs
    assert pairs == (("image", "text"), ("audio", "image"), ("audio", "text"))


@pytest.mark.parametrize(("what", "told"), [
    ("equal captions", "text is the same in all"),
    ("blank captions", "no two kinds of data meet in a record"),
    ("apart", r"no two kinds of data meet in a record: of \d+ records \d+ with (text|image)"),
])  # fmt: skip
def test_data_that_teach_nothing_are_refused(what, told, tmp_path):
    data(tmp_path / "data", count=40, audio=False)
    for i, text in enumerate(sorted((tmp_path / "data").glob("*.txt"))):
        if what == "apart":
            (text if i % 2 else text.with_suffix(".png")).unlink()
        else:
            text.write_text("a cat" if what == "equal captions" else " \n")
    with pytest.raises(ConfigError, match=told):
        sizes.of_source(found.source_of(str(tmp_path / "data")))


def test_ten_records_and_broken_pictures_make_a_config(tmp_path, capfd):
    made = sizes.of_source(data(tmp_path / "ten", count=10, audio=False))
    assert (made.batch_size, made.total_steps) == (8, 300)
    assert "records are few" in capfd.readouterr().err
    data(tmp_path / "broken", count=30, audio=False)
    for i, image in enumerate(sorted((tmp_path / "broken").glob("*.png"))):
        image.write_bytes(b"no picture %d" % i)
    made = sizes.of_source(found.source_of(str(tmp_path / "broken")))
    assert made.size == (64, 64)
    assert "image: 2" in capfd.readouterr().err  # so many cannot be read


def classes(folder, last=3):
    for i, row in enumerate(own.records(count=80, audio=False)):
        folder.mkdir(exist_ok=True)
        (folder / f"{i}.png").write_bytes(row["image"])
        (folder / f"{i}.cls").write_text(str(row["group"] if i else last))
    return found.source_of(str(folder))


def test_numbers_of_classes_are_read_to_the_last_record(root, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "MOST", 10)
    source = classes(tmp_path / "data", last=5)
    made = sizes.of_source(source)
    assert made.classes == ("0", "1", "2", "3", "4", "5")
    assert made.pairs == (("image", "label"),)
    module = config.load_module(root / "configs" / "own_data.py")
    experiment = module.get_config(source=source)
    assert experiment.modalities["label"].number(5) == 5
    assert experiment.tasks["masked"].targets == ("label",)
    with pytest.raises(ConfigError, match="no number of a class: the largest is 123456"):
        sizes.of_source(classes(tmp_path / "more", last=123456))
