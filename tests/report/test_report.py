"""The page of a run: what it shows of whole runs and of parts, and how a browser takes it."""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import mmjax
from mmjax import checkpoint, cli
from mmjax.config import fingerprint
from mmjax.evaluate import samples
from mmjax.modalities.audio import Audio
from mmjax.modalities.image import Image
from mmjax.modalities.structured import Bins, Boxes, Metadata
from mmjax.modalities.text import Text
from mmjax.report import charts, gallery, overfitting, page, run, sections

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MODALITIES = {
    "text": Text(),
    "image": Image(size=(8, 16), patch=4, channels=1),
    "audio": Audio(seconds=0.2),
    "boxes": Boxes(max_boxes=2),
    "metadata": Metadata(schema={"value": Bins(num=100)}),
}
VALUES = {
    "text": "sixty-three <b>&",
    "image": np.linspace(0, 1, 128, dtype=np.float32).reshape(8, 16),
    "audio": 0.5 * np.sin(np.arange(3200, dtype=np.float32) / 5),
    "boxes": [[0, 0.25, 0.5, 1], [0.5, 0, 0.75, 1]],
    "metadata": {"value": 63},
}
GENERATION = {  # the metrics of two modalities, as the evaluator of generation names them
    "real_to_text_exact": 1.0, "codes_to_text_exact": 1.0, "trivial_to_text_exact": 0.01,
    "real_to_boxes_iou": 1.0, "codes_to_boxes_iou": 1.0, "trivial_to_boxes_iou": 0.8,
    "text_to_boxes_iou": 0.9, "text_to_boxes_iou_unseen": 0.85,
    "boxes_to_text_exact": 0.25, "boxes_to_text_exact_unseen": 0.2,
}  # fmt: skip


def log(step: int, loss: float) -> dict:
    return {
        "step": step, "time": 1000.0 + step, "train/loss": loss,
        "train/masked/loss": loss, "train/masked/text/loss": 2 * loss, "train/masked/skipped": 0.0,
        "train/masked/text/accuracy": 1 - loss / 10, "train/masked/grad_norm": 1.0,
        "throughput/steps_per_second": 2.0, "data/wait_fraction": 0.1,
        "time/compile": 20.0, "time/step": step / 2, "time/input": step / 2 - 1, "time/save": 1.0,
        "data/masked/tokens": 75.0, "data/masked/slots": 100.0, "data/masked/cut/text": 3.0,
        "moe/layer_0/load_max": 1.5, "moe/layer_0/text/load_max": 1.2,
        "moe/layer_0/load_min": 0.25, "moe/layer_0/entropy": 0.93, "moe/layer_0/dead": 0.125,
        "moe/alarm/dead_experts": float(step > 20), "moe/alarm/overflow": 0.0,
    }  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
    """A run as files, without a model."""
    start = {
        "time": "1970-01-01T00:16:40+00:00", "mmjax": "0.1.0", "packages": {"jax": "0.10.2"},
        "devices": "4 x TPU v5e", "cpu_cores": 8,
        "seconds": {"compile": 20.0, "start": 25.0, "evaluate": 8.0, "save": 1.0},
    }  # fmt: skip
    config = {"name": "Numbers & <more>", "total_steps": 60, "tasks": {"masked": {}},
              "modalities": {"text": {}, "boxes": {}},
              "evaluators": {"generation": {"judges": {"boxes": {}, "text": {}}}},
              "logging": {"log_every": 20}}  # fmt: skip
    files = {
        "config.json": {"config": config, "fingerprint": fingerprint(config)},
        "run.json": {"identity": {}, "starts": [start]},
        "evals/generation/60.json": dict.fromkeys(GENERATION, 0.5),
        "evals/generation.test/60.json": GENERATION,
        "scores.json": {m: {"value": v, "chance": 0.01} for m, v in GENERATION.items()},
        "experts.json": {
            "steps": [41, 60],
            "streams": ["text", "boxes", "absent"],
            "layers": [
                {"layer": 0, "where": "enc 1", "load": [[30, 10, 0, 0], [5, 5, 5, 5], [0] * 4]},
                {"layer": 1, "where": "enc 3", "load": [[10, 10], [0, 20], [0, 0]]},
            ],
        },
    }
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(value))
    rows = [log(step, loss) for step, loss in ((20, 5.0), (40, 1.0), (60, 0.1))]
    rows.append({"step": 60, "time": 1061.0, "eval/generation/text_to_boxes_iou": 0.5})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 80, "tra')  # cut off in writing
    writer = samples.Writer(tmp_path / "samples" / "60")
    for given, wanted in (("text", "image"), ("image", "audio"), ("audio", "boxes"),
                          ("boxes", "metadata"), ("metadata", "text")):  # fmt: skip
        sides = [{n: (MODALITIES[n], VALUES[n])} for n in (given, wanted)]
        writer.add(*sides, score={wanted: 1.0}, note="seen")
    writer.close()
    return tmp_path


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the visible text; unbalanced tags are an error."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if not {"style", "pre"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def count(self, tag):
        return sum(t == tag for t, _ in self.tags)


def test_the_page_holds_what_it_shows_and_asks_no_network(workdir):
    found = mmjax.report(str(workdir))
    assert found["path"] == str(workdir / "report.html")
    text = (workdir / "report.html").read_text()
    shown = Page(text)
    assert "default-src 'none'" in text
    for tag, attributes in shown.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)
        if tag in ("img", "audio", "svg") and "aria-hidden" not in attributes:
            assert attributes.get("alt") or attributes.get("aria-label")
    assert not re.search(r"url\(|@import|<script", text)
    anchors = {a["href"][1:] for t, a in shown.tags if t == "a"}
    assert anchors == {a["id"] for t, a in shown.tags if t == "section" and "id" in a} - {"summary"}
    assert (shown.count("img"), shown.count("audio")) == (2, 2)
    assert "Numbers & <more>" in shown.text
    assert "sixty-three <b>&" in shown.text
    assert "Not here" not in shown.text


def test_every_section_says_what_was_measured(workdir):
    shown = Page(page.html(run.read(str(workdir)))).text
    assert "4 x TPU v5e, 8 CPU cores" in shown
    assert "masked: text 0.20" in shown  # the last loss of the stream
    assert "given boxes (iou) text (exact) boxes 0.25 text 0.90" in shown
    assert "real value 1.00 1.00 its codes 1.00 1.00 trivial answer 0.80 0.01" in shown
    assert "text to boxes iou 0.900 0.850 0.010" in shown  # all, unseen, chance
    assert "all together 1.50 text 1.20" in shown
    assert "layer 0 1.50 0.25 0.93 12.5 %" in shown
    assert "Who uses which expert, steps 41 to 60" in shown
    panel = "expert 0 1 2 3 layer 0 (enc 1)"
    assert f"Experts of text {panel} 3.0 1.0 0.0 0.0 layer 1 (enc 3) 1.0 1.0" in shown
    assert f"Experts of boxes {panel} 1.0 1.0 1.0 1.0 layer 1 (enc 3) 0.0 2.0" in shown
    assert "Experts of absent" not in shown
    warning = "experts with less than 1 % of a fair share: in 2 of 3 logs, last 1 layer at step 60"
    assert f"{warning}; raise bias_rate or load_balance_loss_weight" in shown
    assert "tokens dropped" not in shown.replace("tokens that were dropped", "")
    assert "masked 25.0 % text 9 none none" in shown
    lines = dict(page.summary(run.read(str(workdir))))
    assert lines["Best cell"] == "text to boxes, iou 0.90 (trivial answer 0.80)"
    assert lines["Weakest cell"].startswith("boxes to text, exact 0.25")
    assert f"layer 0 of 1); warning: {warning}" in lines["Experts"]
    assert lines["Loss"] == "5 at step 20, 0.10 at the end"
    assert len(lines) <= 10


def test_time_adds_up(workdir):
    seconds = run.read(str(workdir)).seconds
    assert seconds == {"productive": 30.0, "data wait": 29.0, "compile": 20.0, "save": 1.0}
    shown = Page(page.html(run.read(str(workdir)))).text
    assert "1 min 20 s over one start; goodput 38%" in shown


@pytest.mark.parametrize(
    "missing", ["samples", "evals", "metrics.jsonl", "scores.json", "run.json"]
)
def test_what_a_run_lacks_is_left_out(workdir, missing):
    path = workdir / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = Page(page.html(run.read(str(workdir)))).text
    assert ("Not here" in text) == (missing not in ("scores.json", "run.json"))
    assert "Numbers & <more>" in text


def test_scores_stand_beside_simple_methods(workdir):
    folder = workdir / "evals" / "generation.test"
    found = {"chance": {"boxes_to_text_exact": 0.05}, "constant": {"boxes_to_text_exact": 0.3}}
    (folder / "baselines.json").write_text(json.dumps({"key": "", "levels": found}))
    (workdir / "scores.json").unlink()  # as `mmjax train` leaves a run
    (workdir / "evals" / "generation").rename(workdir / "evals" / "generation.val")
    shown = Page(page.html(run.read(str(workdir))))
    assert "boxes to text exact 0.250 0.200 0.050 0.30" in shown.text
    told = "generation: not above constant in 1 of 1 scores (boxes_to_text_exact)"
    assert told in shown.text
    assert "what to do: train longer" in shown.text
    (folder / "baselines.json").write_text('{"levels": {"constant": ["<b>"], "ridge": {"a": "b"}}}')
    assert "not above" not in Page(page.html(run.read(str(workdir)))).text


def test_hits_and_misses_of_retrieval_are_shown(workdir):
    writer = samples.Writer(workdir / "samples" / "60" / "retrieval")
    side = lambda name: {name: (MODALITIES[name], VALUES[name])}
    writer.add(side("image"), side("audio"), rank=1, gallery=100)
    writer.add(side("audio"), side("image"), right=side("image"), rank=57, gallery=100)
    writer.close()
    shown = Page(page.html(run.read(str(workdir))))
    assert "Hits and misses image → audio" in shown.text.replace("to →", "→")
    assert "right · first of 100" in shown.text
    assert "right was" in shown.text
    assert "wrong · the right one is 57 of 100" in shown.text
    assert (shown.count("img"), shown.count("audio")) == (2 + 3, 2 + 2)
    odd = {
        "given": {"image": "a"},
        "wanted": {"text": "b"},
        "rank": "<b>",
        "gallery": [],
        "right": 3,
    }
    path = workdir / "samples" / "60" / "retrieval" / samples.FILE
    path.write_text(json.dumps({"entries": [odd]}))
    assert "Hits and misses" not in Page(page.html(run.read(str(workdir)))).text


@pytest.mark.parametrize("is_worse", [True, False])
def test_it_is_said_where_train_and_val_part(workdir, is_worse):
    values = {20: 4.0, 40: 2.0, 60: 2.9 if is_worse else 1.0}
    (workdir / "evals" / "losses").mkdir()
    for step, value in values.items():
        (workdir / "evals" / "losses" / f"{step}.json").write_text(f'{{"masked/loss": {value}}}')
    rows = [log(step, 5 - step / 15) for step in range(5, 61, 5)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = run.read(str(workdir))
    shown = Page(page.html(loaded)).text
    said = "losses/masked/loss was best at step 40 (2) and is 2.90 at step 60, while the train loss"
    assert (said in shown) == is_worse
    assert ("Overfitting" in dict(page.summary(loaded))) == is_worse
    assert ("No sign that val gets worse" in shown) != is_worse
    assert "Loss of masked" in shown


def test_a_gap_between_train_and_val_is_said_of_one_evaluation(workdir):
    (workdir / "evals" / "losses").mkdir()
    (workdir / "evals" / "losses" / "60.json").write_text('{"masked/loss": 9.0}')
    (said,) = overfitting.lines(run.read(str(workdir)))
    assert "the loss of masked is" in said
    assert "9 on val at the end" in said
    (workdir / "evals" / "losses" / "60.json").write_text('{"masked/loss": 0.1}')
    assert overfitting.lines(run.read(str(workdir))) == []


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text('{"config": {"name": "new"}}')
    text = Page(page.html(run.read(str(tmp_path)))).text
    assert text.count("no ") >= 6


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(checkpoint.NoCheckpoint, match="not the workdir of a run"):
        mmjax.report(str(tmp_path))
    assert cli.main(["report", str(tmp_path)]) == 66
    assert "mmjax report: " in capsys.readouterr().err


def test_the_command_writes_the_page_and_says_the_summary(workdir):
    done = subprocess.run(
        [sys.executable, "-m", "mmjax", "report", str(workdir)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(mmjax.__file__))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == str(workdir / "report.html")
    assert (workdir / "report.html").stat().st_size > 10000
    assert 5 <= len(lines) - 2 <= 10


def test_samples_name_only_files_of_their_folder(workdir):
    folder = workdir / "samples" / "60"
    entry = {"given": {"text": "../../run.json"}, "wanted": {"text": "absent.png"}}
    (folder / samples.FILE).write_text(json.dumps({"entries": [entry]}))
    (found,) = run.read(str(workdir)).samples
    assert found == entry  # both are texts


def test_what_the_command_generated_is_shown_too(workdir):
    folder = workdir / "samples" / "60" / "drawn"
    folder.mkdir()
    MODALITIES["image"].write(VALUES["image"], folder / "image_0")
    request = {"given": {"text": {"value": "draw me seven", "sha256": "0"}}, "want": ["image"]}
    made = [{"index": 0, "files": {"image": "image_0.png"}}]
    (folder / samples.FILE).write_text(json.dumps({"request": request, "samples": made}))
    shown = Page(page.html(run.read(str(workdir))))
    assert "draw me seven" in shown.text
    assert shown.count("img") == 3


def test_metrics_of_slices_stand_beside_their_metric():
    metrics = {"a_R@1": 0.5, "a_R@1_seen": 0.6, "a_R@1_new_voice_seen": 0.4, "b": 1.0, "ab": 2.0}
    assert sections.rows_of(metrics) == {
        "a_R@1": {"": 0.5, "seen": 0.6, "new_voice_seen": 0.4}, "b": {"": 1.0}, "ab": {"": 2.0}
    }  # fmt: skip


@pytest.mark.parametrize("points", [[(5, 2.0)], [(0, 1e-4), (10, 1.0)], [(0, -1.0), (9, 3.0)]])
def test_curves_stay_inside_their_frame(points):
    text = charts.lines("Loss", {"a & b": points})
    found = re.findall(r'points="([^"]+)"', text)[0]
    for pair in found.split():
        x, y = map(float, pair.split(","))
        assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
        assert charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM
    assert ("log scale" in text) == (points[0][1] == 1e-4)
    assert text.count('text-anchor="end"') >= 3
    Page(text)


def test_a_waveform_is_drawn_of_16_bit_sound_alone(tmp_path):
    path = MODALITIES["audio"].write(VALUES["audio"], tmp_path / "a")
    assert gallery.waveform(path.read_bytes()).count("v") > gallery.BARS
    assert gallery.waveform(b"RIFF") == ""


# ------------------------------------------------------------------------------ browser


def browse(file, folder, *options: str) -> tuple[str, str]:
    """What headless Chromium prints, and what it logs."""
    assert CHROMIUM, "no Chromium to show the page: apt-get install chromium"
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--hide-scrollbars", "--enable-logging=stderr",
            "--v=0", f"--user-data-dir={folder}", *options, f"file://{file}",
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def pixels(path) -> np.ndarray:
    import PIL.Image

    return np.asarray(PIL.Image.open(path).convert("RGB"))


@pytest.mark.ci
def test_a_browser_shows_pictures_and_players_without_a_complaint(workdir, tmp_path_factory):
    mmjax.report(str(workdir))
    file, folder = workdir / "report.html", tmp_path_factory.mktemp("chromium")
    dom, logged = browse(file, folder, "--dump-dom", "--virtual-time-budget=2000")
    assert "CONSOLE" not in logged, logged
    shown = Page(dom)
    assert (shown.count("img"), shown.count("audio")) == (2, 2)
    shots = {}
    for name, options in {
        "light": ("--window-size=1280,3000",),
        "dark": ("--window-size=1280,3000", "--blink-settings=preferredColorScheme=0"),
        "phone": ("--window-size=500,3000",),
    }.items():
        shot = folder / f"{name}.png"
        _, logged = browse(file, folder, f"--screenshot={shot}", *options)
        assert "CONSOLE" not in logged, logged
        shots[name] = pixels(shot)
    assert shots["light"][0, 0].min() > 230  # the background
    assert shots["dark"][0, 0].max() < 40
    assert shots["phone"].shape[1] == 500
    # The gray wedge of the sample is on the page, enlarged: sixteen steps from black to white.
    rows = shots["light"][:, :, 0].astype(int)
    assert max(len(set(row[100:300].tolist())) for row in rows) >= 8
