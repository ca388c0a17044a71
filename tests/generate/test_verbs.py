"""`mmjax generate` and its twin: files in, files and a page out, and every refusal."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import os
import shutil
import subprocess
import sys
import wave

import letters
import numpy as np
import PIL.Image
import pytest

import mmjax
from mmjax import cli
from mmjax.config import ConfigError
from mmjax.data.layouts import Aligned
from mmjax.generate import Decoding, sampling, sheet, verbs
from mmjax.modalities.structured import Boxes
from mmjax.objectives import InfoNCE
from mmjax.report import gallery

CODE = ["--code", letters.__file__]


@pytest.fixture
def picture(tmp_path):
    """A picture of the word "bead"."""
    path = tmp_path / "bead.png"
    PIL.Image.fromarray(letters.Spelling.example("bead")["image"]).save(path)
    return path


def sound(path, seconds):
    samples = (np.sin(np.arange(int(16000 * seconds)) / 5) * 9000).astype(np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(samples.tobytes())
    return path


@pytest.fixture
def loaded(view, monkeypatch):
    """Loads of the run give the one view, whose functions are compiled already."""
    asked = []
    monkeypatch.setattr(verbs.load, "load", lambda path, code=None: asked.append(path) or view)
    return asked


class Page(html.parser.HTMLParser):
    """Tags and what they point at."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href")]

    def handle_data(self, data):
        self.text += data


@pytest.mark.slow
def test_a_picture_becomes_words_in_a_process_of_its_own(workdir, picture, tmp_path):
    out = tmp_path / "out"
    big = tmp_path / "big.png"
    PIL.Image.open(picture).resize((32, 16), PIL.Image.Resampling.NEAREST).save(big)
    paths = [os.path.dirname(os.path.dirname(mmjax.__file__)), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "mmjax", "generate", str(workdir), *CODE]
    command += ["--given", f"image={big}", "--want", "text", "--out", str(out)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{out}/text_0.txt", f"{out}/index.html"]
    assert "image: 16 x 32 pixels are stretched to 8 x 16" in done.stderr
    assert (out / "text_0.txt").read_text() == "bead"
    found = json.loads((out / "samples.json").read_text())
    assert found["request"]["step"] == 60
    assert found["request"]["given"]["image"]["value"] == str(big)
    assert found["samples"] == [{"index": 0, "files": {"text": "text_0.txt"}}]
    assert sorted(p.name for p in out.iterdir()) == ["index.html", "samples.json", "text_0.txt"]


def test_the_twin_gives_raw_values(view, workdir):
    image = letters.Spelling.example("bead")["image"]
    assert mmjax.generate(view, {"image": image}, ["text"]) == {"text": ["bead"]}
    plan = [Decoding(stream="image", temperature=1.0, steps=3)]  # the trained one is `levels`
    found = mmjax.generate(view, {"text": "cab"}, plan, num=3, seed=5)
    assert [x.shape for x in found["image"]] == [(8, 16)] * 3
    more = mmjax.generate(view, {"text": "cab"}, plan, num=5, seed=5)
    for one, two in zip(found["image"], more["image"], strict=False):
        np.testing.assert_array_equal(one, two)
    other = mmjax.generate(view, {"text": "cab"}, plan, num=3, seed=6)
    assert any((a != b).any() for a, b in zip(found["image"], other["image"], strict=True))


def test_files_and_the_page(loaded, tmp_path):
    hum = sound(tmp_path / "hum.wav", 0.3)
    said: list[str] = []
    out = tmp_path / "new" / "out"
    found = mmjax.generate.write(
        "run", {"audio": str(hum)}, ["text", "image"], out, num=3, seed=1, say=said.append
    )
    assert said == ["audio: 0.30 s are cut to the first 0.12 s"]
    assert [s["files"]["image"] for s in found["samples"]] == [f"image_{i}.png" for i in range(3)]
    assert json.loads((out / "samples.json").read_text()) == json.loads(json.dumps(found))
    assert [p["temperature"] for p in found["request"]["plan"]] == [0.7, 0.7]
    assert PIL.Image.open(out / "image_2.png").size == (16, 8)
    page = Page(out / "index.html")
    assert page.tags.count("img") == 3
    assert page.tags.count("audio") == 1
    assert all(s.startswith("data:") for s in page.sources)
    assert (out / "text_1.txt").read_text() in page.text
    assert "levels: maskgit in 8 steps, temperature 0.7" in page.text


def test_a_page_says_what_it_was_given_as_text(tmp_path):
    (tmp_path / "boxes_0.json").write_text("[[0, 0.25, 0.5, 1]]")
    (tmp_path / "odd.xyz").write_text("?")
    (tmp_path / "big.png").write_bytes(bytes(gallery.MAX_BYTES + 1))
    item = dataclasses.asdict(Decoding(stream="boxes", scheme="autoregressive", beams=4, rerank=1))
    request = {"plan": [item], "run": "<run>", "step": 1, "seed": 0}
    given = {"text": "<b> & 'c'", "odd": tmp_path / "odd.xyz", "image": tmp_path / "big.png"}
    samples = [{"index": 0, "files": {"boxes": "boxes_0.json"}}]
    sheet.write(tmp_path, given, ["boxes"], samples, request)
    page = Page(tmp_path / "index.html")
    assert "b" not in page.tags
    assert "<b> & 'c'" in page.text
    assert "rect" in page.tags
    assert "boxes: autoregressive, 4 beams reranked at 1, temperature 0" in page.text
    assert "odd: odd.xyz" in page.text
    assert "big.png is not shown" in page.text
    assert page.sources == ["data:,"]  # the icon


# ------------------------------------------------------------------- a folder, many calls


def call(out, **settings):
    return mmjax.generate.write("run", {"text": "fade"}, ["image"], out, **settings)


def contents(out):
    return {p.name: p.read_bytes() for p in out.iterdir()}


@pytest.mark.slow
def test_an_interrupted_call_keeps_and_finishes_what_it_began(loaded, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    call(whole, num=5)
    monkeypatch.setattr(verbs, "CHUNK", 2)
    real, calls = sampling.sample, []

    def interrupted(view, pieces, plan, seeds):
        calls.append(len(pieces))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(view, pieces, plan, seeds)

    monkeypatch.setattr(verbs.sampling, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "parts", num=5)
    names = {"image_0.png", "image_1.png", "samples.json", "index.html"}
    assert set(contents(tmp_path / "parts")) == names
    assert Page(tmp_path / "parts" / "index.html").tags.count("img") == 2
    call(tmp_path / "parts", num=5)
    assert calls == [2, 2, 2, 1]  # the first two are not made again
    assert contents(tmp_path / "parts") == contents(whole)


def test_other_samples_are_not_lost(loaded, tmp_path):
    out = tmp_path / "out"
    call(out)
    before = contents(out)
    with pytest.raises(ConfigError, match=r"other samples \(seed differ\).*--overwrite"):
        call(out, seed=3)
    with pytest.raises(ConfigError, match=r"other samples \(given differ\)"):
        mmjax.generate.write("run", {"text": "cab"}, ["image"], out)
    assert contents(out) == before
    call(out, num=2, temperature=1.0, overwrite=True)
    assert {"image_0.png", "image_1.png"} < set(contents(out))
    call(out, overwrite=True)
    assert "image_1.png" not in contents(out)
    (out / "samples.json").unlink()
    with pytest.raises(ConfigError, match="holds files that are no samples"):
        call(out)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        call(tmp_path / "file")


# -------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("given", "want", "options", "message"),
    [
        ("text=cab", "smell", [], "--want smell: the run was not trained for it"),
        ("text=cab", "audio", [], "use one of text, levels, image."),
        ("text=cab", "levls", [], "--want levls: the run has no such modality; did you mean"),
        ("smell={png}", "text", [], "--given smell: the run was not trained for it"),
        ("smel={png}", "text", [], "--given smel: the run has no such modality"),
        ("text=cab", "text", [], "--want text: text is given, which is the same"),
        ("image={png}", "levels", [], "--want levels: image is given, which is the same"),
        ("text=cab", "levels levels", [], "--want levels is there twice"),
        ("text=cab", "levels image", [], "both are levels; name one"),
        ("image={wav}", "text", [], "cannot be read"),
        ("image={dir}/absent.png", "text", [], "absent.png' cannot be read"),
        ("audio={png}", "text", [], "cannot be read"),
        ("image={png}", "text", ["--steps", "3"], "--steps 3: text is decoded token by token"),
        ("text=cab", "image", ["--steps", "-3"], "steps=-3 must be a whole number of 0 or more"),
        ("text=cab", "image", ["--guidance", "-1"], "guidance=-1.0 must be a number of 0 or more"),
        ("text=cab", "image", ["--temperature", "-1"], "temperature=-1.0 must be a number"),
        ("text=cab", "image", ["--seed", "-1"], "--seed -1 must be 0 or more"),
    ],
)
def test_what_cannot_be_is_told(
    loaded, picture, tmp_path, capsys, given, want, options, message
):  # fmt: skip
    places = {"png": picture, "wav": sound(tmp_path / "hum.wav", 0.1), "dir": tmp_path}
    args = ["generate", "run", "--given", given.format(**places), "--want", *want.split()]
    assert cli.main([*args, "--out", str(tmp_path / "out"), *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run(tmp_path, capsys):
    args = ["generate", str(tmp_path), "--given", "text=a", "--want", "image"]
    assert cli.main([*args, "--out", str(tmp_path / "out")]) == 66
    assert "no complete checkpoint" in capsys.readouterr().err


def test_a_path_names_a_step(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "run")
    found = mmjax.generate(
        f"{copy}@60", {"image": letters.Spelling.example("cab")["image"]}, ["text"],
        code=letters.__file__,
    )  # fmt: skip
    assert found == {"text": ["cab"]}
    with pytest.raises(ConfigError, match="num=0 makes no sample"):
        mmjax.generate(f"{copy}@60", {}, ["text"], num=0, code=letters.__file__)


def test_seeds_of_samples_are_apart():
    seeds = verbs.sample_seeds(0, range(1000))
    assert len(set(seeds)) == 1000
    assert seeds[3] == verbs.sample_seeds(0, [3])[0] != verbs.sample_seeds(1, [3])[0]


def test_a_rerank_is_for_the_wanted_that_have_a_contrast():
    boxes = Boxes(max_boxes=2, bins=9)
    base = letters.get_config(modalities={**letters.MODALITIES, "boxes": boxes})
    pair = dataclasses.replace(
        base.tasks["masked"], inputs=("image", "text"), targets=(), layout=Aligned(),
        objective=InfoNCE(),
    )  # fmt: skip
    experiment = dataclasses.replace(base, tasks={**base.tasks, "pair": pair})
    plan = lambda *want: [
        i.rerank for i in verbs._plan(experiment, {n: n for n in want}, want, 0.0, 0, 1.0, 4, 2.0)
    ]
    assert plan("text", "boxes", "levels") == [2, 0, 0]
    assert plan("levels", "boxes") == [0, 2]  # which is refused, as it can do nothing
    with pytest.raises(ConfigError, match="--rerank 2 chooses among beams; add --beams 4"):
        verbs._plan(experiment, {"text": "text"}, ["text"], 0.0, 0, 1.0, 1, 2.0)
