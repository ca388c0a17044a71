"""`mmjax data check`: what it prints, what its page holds, how it exits."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys

import own
import PIL.Image
import pytest
import test_own_data

import mmjax
from mmjax import data_check, errors
from mmjax.data.folder import Folder
from mmjax.experiment import Guards
from mmjax.run import manifest

ROWS = own.records(count=20, size=70)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


PAIRS = (("image", "text"), ("audio", "text"))


def sized_by_others(root, folder, rows):
    """A config that was made for ROWS, where other records lie now, with a contrast a pair."""
    experiment = test_own_data.shrunk(root, source=own.write(folder, "array_records", ROWS))
    shutil.rmtree(folder)
    own.write(folder, "array_records", rows)
    tasks = dict(experiment.tasks)
    contrast = tasks.pop("contrast")
    pairs = {f"{a}_{b}": dataclasses.replace(contrast, inputs=(a, b), augment={}) for a, b in PAIRS}
    return dataclasses.replace(experiment, tasks={**pairs, **tasks})


def checked(root, folder, rows, out=None, records=10, **guards):
    experiment = sized_by_others(root, folder, rows)
    audio = dataclasses.replace(experiment.modalities["audio"], seconds=0.3)
    experiment = dataclasses.replace(
        experiment,
        modalities={**experiment.modalities, "audio": audio},
        guards=Guards(**guards),
    )
    return mmjax.data_check(experiment, out, records)


def test_numbers_and_page_are_what_the_model_gets(root, tmp_path):
    report = checked(root, tmp_path / "data", ROWS, tmp_path / "out" / "page.html", records=4)
    found, held_out = report["sources"]
    assert (found["split"], held_out["split"]) == ("train", "val")
    assert found["tasks"] == ["image_text", "audio_text", "masked"]
    assert found["read"] == min(4, found["records"])
    assert found["bad"] == {}
    image, audio = found["streams"]["image"], found["streams"]["audio"]
    assert image["tokens"] == {"min": 64, "mean": 64.0, "p95": 64, "max": 64}
    assert image["values"] == ["4 x bytes"]
    assert 0 < audio["present"] < 4
    assert report["problems"] == []
    said = data_check.text(report)
    assert "ArrayRecords, split train" in said
    assert "64 to 64 tokens" in said
    page = (tmp_path / "out" / "page.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 4 + held_out["read"] == 8
    assert PIL.Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (64, 64)
    assert page.count("<audio") == audio["present"] + held_out["streams"]["audio"]["present"]
    assert "square, number" in page
    assert "are stretched to 64 x 64" in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)


def test_bad_records_are_named_and_end_the_check(root, tmp_path):
    rows = [{**row, "image": b"<script>"} if i % 3 == 0 else row for i, row in enumerate(ROWS)]
    report = checked(root, tmp_path, rows, tmp_path / "page.html", records=6, max_bad_fraction=0.1)
    assert report["sources"][0]["bad"]["no_image"]
    with pytest.raises(errors.BadDataError, match=r"no_image in set\.array_record/"):
        data_check.raise_problems(report)
    assert "no_image in set.array_record/" in (tmp_path / "page.html").read_text()
    data_check.raise_problems(checked(root, tmp_path, rows, max_bad_fraction=0.9))
    strict = checked(root, tmp_path, rows, max_bad_fraction=0.9, strict=True)
    with pytest.raises(errors.BadDataError):
        data_check.raise_problems(strict)


def test_a_stream_that_is_nowhere_fails_the_check(root, tmp_path):
    rows = [{**row, "audio": None} for row in ROWS[:-1]]
    rows.append(ROWS[-1])  # so that the field exists somewhere
    report = checked(root, tmp_path, [*rows[:-1], {**ROWS[-1], "id": "zzzz"}])
    if report["sources"][0]["streams"]["audio"]["present"] == 0:
        assert any("no complete sample" in line for line in report["problems"])
        with pytest.raises(errors.CheckFailed, match="no record read has the stream 'audio'"):
            data_check.raise_problems(report)


def test_all_records_of_all_splits_are_read(root, tmp_path):
    rows = own.records(count=40)
    report = checked(root, tmp_path / "data", [*rows, *({**r, "id": r["id"] + "b"} for r in rows)],
                     records=None)  # fmt: skip
    train, val = report["sources"]
    assert (train["read"], val["read"]) == (train["records"], val["records"])
    assert train["read"] + val["read"] == 80
    image, audio = train["streams"]["image"], train["streams"]["audio"]
    assert image["sizes"]["height"]["max"] == 42
    assert audio["sizes"]["seconds"]["min"] == pytest.approx(0.2562, abs=1e-3)
    assert 0 < audio["padding"][0] < audio["padding"][1] < 1  # some records have no sound
    assert train["complete"]["masked"] == train["read"] > train["complete"]["audio_text"]
    copies = train["copies"]["whole record"]
    assert (copies["of"], len(copies["names"][0])) == (train["read"], 2)
    (leak, *_) = val["leaks"]
    assert leak["what"] == "whole record"
    assert leak["split"] == "train"
    assert 0 < leak["count"] <= val["read"]
    ids = {name.partition("(")[0].strip("b ") for name in leak["names"][0]}
    assert len(ids) in (1, 2)
    said = data_check.text(report)
    assert f"whole record: {leak['count']} of {val['read']} are also in train" in said
    assert "proposed, by the split to train on:\n  image: size=(48, 48)" in said
    assert "TFLOP" in said


def test_a_split_that_repeats_another_fails_the_check(root, tmp_path):
    for split in ("train", "val"):
        own.write(tmp_path / split, "stems", own.records(count=12, audio=False))
    files = {split: str(tmp_path / split) for split in ("train", "val")}
    source = Folder(files=files, fields={"image": "png", "text": "txt"})
    report = mmjax.data_check(test_own_data.shrunk(root, source=source))
    assert report["sources"][1]["leaks"][0]["count"] == 12
    with pytest.raises(errors.CheckFailed, match="12 of 12 records repeat those of 'train'"):
        data_check.raise_problems(report)


def test_modalities_that_never_meet_fail_the_check_and_the_run(root, tmp_path):
    apart = [{**r, "image" if i % 2 else "text": None} for i, r in enumerate(ROWS)]
    experiment = sized_by_others(root, tmp_path / "data", apart)
    told = r"'image_text'.* no complete sample.*text\+audio"
    with pytest.raises(errors.CheckFailed, match=told):
        data_check.raise_problems(mmjax.data_check(experiment))
    with pytest.raises(errors.ConfigError, match=r"'image_text': no complete sample in \d+ of"):
        mmjax.train(experiment, tmp_path / "run")


@pytest.mark.ci
def test_the_command(root, tmp_path):
    own.write(tmp_path / "data", "stems", ROWS)
    (tmp_path / "mine.py").write_text(
        "import dataclasses\nfrom mmjax import config\n"
        "from mmjax.tokenizers.sentencepiece import SentencePiece\n"
        "def get_config():\n"
        f"    base = config.load_module({str(root / 'configs' / 'own_data.py')!r})\n"
        f"    made = base.get_config(data={str(tmp_path / 'data')!r})\n"
        "    text = dataclasses.replace(made.modalities['text'],\n"
        "        tokenizer=SentencePiece(vocab_size=400, num_sentinels=16))\n"
        "    return dataclasses.replace(made, modalities={**made.modalities, 'text': text})\n"
    )
    command = [sys.executable, "-m", "mmjax", "data", "check", str(tmp_path / "mine.py"), "--json"]
    command += ["--out", str(tmp_path / "page.html"), "--records", "5"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sources"][0]["read"] == 5
    assert (tmp_path / "page.html").stat().st_size > 10_000
    for file in (tmp_path / "data").glob("*.png"):
        file.write_bytes(file.read_bytes()[:90])
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120)
    assert done.returncode == 65, done.stderr
    assert "broken_image in data/" in done.stderr
    command[4] = "chekc"
    assert subprocess.run(command, capture_output=True, cwd=root, timeout=60).returncode == 2


def test_tokens_are_those_of_the_run_that_it_starts_from(root, tmp_path):
    rows = [{**row, "text": "\u00e9" * 9} for row in ROWS]
    experiment = sized_by_others(root, tmp_path / "data", rows)
    tokenizer = experiment.modalities["text"].tokenizer
    texts = iter(["abc", "abd"])  # without accents, so they are two bytes each
    base = tokenizer.fit(lambda: texts, tmp_path / "base" / "tokenizers" / "text@1")
    with pytest.raises(errors.NoCheckpoint, match="base"):
        mmjax.data_check(dataclasses.replace(experiment, init=str(tmp_path / "base")))
    step = tmp_path / "base" / "checkpoints" / "1"
    step.mkdir(parents=True)
    empty = {key: kind() for key, kind in manifest.KEYS.items()}
    whole = {**empty, "format": 1, "step": 1, "items": ["params"]}
    (step / manifest.FILE).write_text(json.dumps(whole))
    report = mmjax.data_check(dataclasses.replace(experiment, init=str(tmp_path / "base")))
    found, _ = report["sources"]
    assert found["streams"]["text"]["tokens"]["max"] == len(base.encode("\u00e9" * 9)) + 1 >= 19
    alone, _ = mmjax.data_check(experiment)["sources"]
    assert alone["streams"]["text"]["tokens"]["max"] < 19


def test_one_bad_record_is_told_and_ends_nothing(root, tmp_path):
    rows = [{**row, "image": b"<script>"} if i == 0 else row for i, row in enumerate(ROWS)]
    report = checked(root, tmp_path / "data", rows, records=None)
    assert sum(source["num_bad"] for source in report["sources"]) == 1
    data_check.raise_problems(report)
    with pytest.raises(errors.BadDataError, match="max_bad_fraction=0 allows"):
        data_check.raise_problems(
            checked(root, tmp_path / "strict", rows, records=None, strict=True)
        )
