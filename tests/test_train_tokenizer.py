"""`mmjax train-tokenizer`: an ordinary run, its artefact, its report; and a run that uses it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import commands
import jax
import mini
import numpy as np
import pytest
from etils import epath

import mmjax
from mmjax import config, train_tokenizer
from mmjax.cli import cpu
from mmjax.data.layouts import Masked
from mmjax.data.source import Source
from mmjax.demo.numbers import Numbers
from mmjax.demo.toyworld import ToyWorld
from mmjax.errors import BadDataError
from mmjax.experiment import Guards
from mmjax.modalities.codes import Codes
from mmjax.modalities.features import Vector
from mmjax.modalities.video import Video
from mmjax.modalities.waveform import Waveform
from mmjax.models import FSQ, VQ, Autoencoder, ProductVQ
from mmjax.objectives import InfoNCE, Reconstruction
from mmjax.tokenizers.learned import Learned

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "quickstart_tokenizers.py"
ONE = jax.devices()[:1]


def tokenizer(name: str = "image", **fields):
    """Six steps of one of the demo's tokenizers, on 64 examples."""
    full = config.load(f"{CONFIG}:{name}")
    task = dataclasses.replace(
        full.tasks["reconstruct"], source=Numbers(train_size=64), batch_size=16
    )
    return dataclasses.replace(full, **{"tasks": {"reconstruct": task}, "total_steps": 6, **fields})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    mmjax.train_tokenizer(tokenizer(), folder, devices=ONE)
    return folder


def test_the_artefact_and_the_report_lie_in_the_workdir(trained):
    manifest = json.loads((trained / "tokenizer" / "tokenizer.json").read_text())
    report = json.loads((trained / "tokenizer" / "report.json").read_text())
    assert manifest["fingerprints"] == report["fingerprints"]
    assert manifest["preprocessing"]["class"] == "Image"
    assert manifest["parent"]["step"] == 6
    assert manifest["grid"] == [1, 2, 8]
    assert (report["examples"], report["codes"], report["tokens"]) == (1000, 256, 16)
    assert report["usage"] == 1 - report["dead"] / 256
    assert 1 <= report["perplexity"] <= 256 - report["dead"]
    assert report["psnr"] == pytest.approx(-10 * np.log10(report["mse"]))
    assert "perplexity" in train_tokenizer.text(report)
    assert "dB PSNR" in train_tokenizer.text(report)
    import PIL.Image

    with PIL.Image.open(trained / "reconstructions.png") as image:
        pixels = np.asarray(image).astype(int)
    assert pixels.shape[0] > 90
    assert pixels.std() > 10


def test_a_finished_run_is_not_trained_again_and_gives_the_same_tokenizer(trained, capfd):
    before = (trained / "tokenizer" / "tokenizer.json").read_bytes()
    mmjax.train_tokenizer(tokenizer(), trained, devices=ONE)
    assert "resumed" in capfd.readouterr().err
    assert (trained / "tokenizer" / "tokenizer.json").read_bytes() == before


def test_a_tokenizer_of_classes_reports_which_are_right(tmp_path):
    full = config.load(f"{CONFIG.parent}/anyany/toyworld_tokenizers.py:semseg")
    source = dataclasses.replace(full.tasks["reconstruct"].source, train_size=64, eval_size=32)
    task = dataclasses.replace(full.tasks["reconstruct"], source=source, batch_size=16)
    few = dataclasses.replace(full, tasks={"reconstruct": task}, total_steps=12)
    report = mmjax.train_tokenizer(few, tmp_path, devices=ONE)
    assert (report["codes"], report["tokens"], report["examples"]) == (1024, 64, 32)
    assert 0.3 < report["accuracy"] < 1
    assert "of the ids are others" in train_tokenizer.text(report)
    assert mini.rows(tmp_path)[12]["train/reconstruct/loss"] < np.log(8)  # of eight ids
    import PIL.Image

    with PIL.Image.open(tmp_path / "reconstructions.png") as image:
        assert np.asarray(image).reshape(-1, 3).std(axis=0).max() > 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rings(Source):
    """Vectors of 16 numbers that three angles make."""

    def splits(self):
        return ("train", "val")

    def keys(self):
        return ("vector",)

    def open(self, split):
        angles = np.random.default_rng(split == "val").uniform(0, 2 * np.pi, (256, 1, 3))
        made = np.sin(angles + np.arange(6)[None, :, None]).reshape(256, 18)[:, :16]
        return [{"vector": vector} for vector in made.astype(np.float32)]

    def fingerprint(self):
        return "rings"


def test_vectors_are_coded_by_matrices_and_several_codebooks(tmp_path):
    model = Autoencoder(
        piece=(1, 1, 16), code_grid=(1, 1), width=64,
        quantizer=ProductVQ(of=VQ(num_codes=32, width=4, cosine=False), num_codebooks=4),
    )  # fmt: skip
    task = dataclasses.replace(
        tokenizer().tasks["reconstruct"], source=Rings(), inputs=("vector",), batch_size=64
    )
    run = tokenizer(
        modalities={"vector": Vector(channels=16)}, model=model, tasks={"reconstruct": task},
        total_steps=150,
    )  # fmt: skip
    report = mmjax.train_tokenizer(run, tmp_path, devices=ONE)
    assert (report["codes"], report["tokens"]) == (128, 4)
    assert report["mse"] < 0.3 * report["variance"]
    assert report["usage"] > 0.8
    assert (tmp_path / "reconstructions.png").stat().st_size > 500


def test_a_tokenizer_of_samples_reports_their_ratio_of_signal_and_noise(tmp_path):
    model = Autoencoder(
        piece=(320, 1, 1), code_grid=(24, 1), strides=(4, 5), width=16, encoder_layers=0,
        decoder_layers=0, quantizer=VQ(num_codes=32, width=4),
    )  # fmt: skip
    task = dataclasses.replace(
        tokenizer().tasks["reconstruct"], inputs=("audio",), batch_size=8,
        objective=Reconstruction(spectral=(64, 256), spectral_weight=0.5),
    )  # fmt: skip
    base = Waveform(seconds=0.48, scale=0.1)
    run = tokenizer(modalities={"audio": base}, model=model, tasks={"reconstruct": task})
    report = mmjax.train_tokenizer(run, tmp_path, devices=ONE)
    assert (report["tokens"], report["examples"]) == (24, 1000)
    assert "dB SI-SNR" in train_tokenizer.text(report)
    assert "psnr" not in report
    codes = Codes(base=base, path=str(tmp_path)).fit(lambda: iter(()), tmp_path / "own")
    sounds = [Numbers().open("val")[i]["audio"] for i in range(1000)]
    found = []
    for sound, made in zip(sounds, codes.decode_batch(codes.encode_batch(sounds)), strict=True):
        length = min(-(-len(sound) // 320) * 320, 7680)
        one, other = np.zeros((2, length))
        one[: len(sound)] = sound[:length]
        one, other = one - one.mean(), made[:length] - made[:length].mean()
        cosine = one @ other / np.sqrt((one @ one) * (other @ other))
        found.append(10 * np.log10(cosine**2 / (1 - cosine**2)))
    assert report["si_snr"] == pytest.approx(np.mean(found), abs=0.01)
    import PIL.Image

    with PIL.Image.open(tmp_path / "reconstructions.png") as image:
        pixels = np.asarray(image)
    # The originals have silence, which is black, and speech, which is not.
    above = pixels[: len(pixels) // 2, :, 0]
    assert 0.1 < (above < 30).mean() < 0.9
    assert above.max() > 200


def test_codes_of_a_video_lie_over_time_rows_and_columns(tmp_path):
    source = ToyWorld(streams=("video",), train_size=16, eval_size=8, size=16, frames=4)
    model = Autoencoder(
        piece=(2, 8, 8, 3), code_grid=(2, 4, 4), width=32, encoder_layers=0, num_heads=2,
        decoder_layers=1, quantizer=FSQ(levels=(4, 4, 4, 4)),
    )  # fmt: skip
    task = dataclasses.replace(
        tokenizer().tasks["reconstruct"], source=source, inputs=("video",), batch_size=8
    )
    base = Video(num_frames=4, frames=2, size=(16, 16), patch=8)
    run = tokenizer(
        modalities={"video": base}, model=model, tasks={"reconstruct": task}, total_steps=120
    )
    report = mmjax.train_tokenizer(run, tmp_path, devices=ONE)
    assert (report["tokens"], report["examples"]) == (32, 8)
    assert report["psnr"] == pytest.approx(-10 * np.log10(report["mse"]))
    assert report["mse"] < 0.9 * report["variance"]
    codes = Codes(base=base, path=str(tmp_path)).fit(lambda: iter(()), tmp_path / "own")
    assert codes.spec("codes").grid == (2, 4, 4)
    videos = np.stack([source.open("val")[i]["video"] for i in range(8)])
    made = np.stack(codes.decode_batch(codes.encode_batch(list(videos))))
    assert made.shape == videos.shape
    assert np.mean(np.square(made - videos / 255)) == pytest.approx(report["mse"], rel=1e-3)
    import PIL.Image

    with PIL.Image.open(tmp_path / "reconstructions.png") as image:
        pixels = np.asarray(image) / 255
    scale = len(pixels) // (2 * (16 + 2))
    small = pixels[scale // 2 :: scale, scale // 2 :: scale]
    assert small.shape == (36, 4 * (4 * 16 + 2), 3)  # four frames of four videos
    for i in range(4):  # above the original, below what is decoded
        right = 66 * i + 1 + 16 * 2
        np.testing.assert_allclose(small[1:17, right : right + 16], videos[i, 2] / 255, atol=0.01)
        np.testing.assert_allclose(small[19:35, right : right + 16], made[i, 2], atol=0.01)


@pytest.mark.parametrize("is_ids", [False, True])
def test_the_error_fits_what_is_coded(is_ids):
    name = "depth" if is_ids else "semseg"
    full = config.load(f"{CONFIG.parent}/anyany/toyworld_tokenizers.py:{name}")
    error = "cross_entropy" if is_ids else "mse"
    task = dataclasses.replace(full.tasks["reconstruct"], objective=Reconstruction(error=error))
    with pytest.raises(ValueError, match=f"error='{error}', but stream '{name}' is of"):
        dataclasses.replace(full, tasks={"reconstruct": task}).vocabulary()


def test_codebooks_go_on_where_a_run_stopped(tmp_path):
    """Bit for bit, with a codebook in the model state that is replaced from data."""
    quantizer = VQ(num_codes=32, width=8, dead_threshold=0.5)
    model = dataclasses.replace(tokenizer().model, quantizer=quantizer)
    checkpoint = dataclasses.replace(tokenizer().checkpoint, every=3)
    full = tokenizer(model=model, checkpoint=checkpoint)
    whole = mmjax.train(full, tmp_path, devices=ONE)
    first, last = (
        mini.state(whole.program, tmp_path, step)["model_state"]["codebook"] for step in (3, 6)
    )
    assert np.abs(first["codes"] - last["codes"]).max() > 0.1
    (tmp_path / "checkpoints" / "6" / "manifest.json").unlink()
    again = mmjax.train(full, tmp_path, devices=ONE)
    assert again.state is not whole.state
    mini.assert_same(again.state.model_state, whole.state.model_state)
    mini.assert_same(again.state.params, whole.state.params)


def test_bad_records_are_left_out_of_the_report(trained, tmp_path):
    experiment, learned = tokenizer(), Learned.read(trained / "tokenizer")
    task = dataclasses.replace(experiment.tasks["reconstruct"], source=mini.Damaged(train_size=64))
    base = experiment.modalities["image"]
    codes = Codes(base=base, path=str(trained)).fit(lambda: iter(()), tmp_path / "tokenizer")
    damaged = dataclasses.replace(experiment, tasks={"reconstruct": task})
    report = train_tokenizer.evaluate(damaged, codes, learned, epath.Path(tmp_path))
    assert report["examples"] == 998
    strict = dataclasses.replace(damaged, guards=Guards(strict=True))
    with pytest.raises(BadDataError, match=r"lost in records 3 \(the file is gone\)"):
        train_tokenizer.evaluate(strict, codes, learned, epath.Path(tmp_path))


def test_a_collapse_is_said(tmp_path, capfd):
    report = mmjax.train_tokenizer(tokenizer(total_steps=0), tmp_path, devices=ONE)
    assert ("have collapsed" in capfd.readouterr().err) == (report["usage"] < 0.5)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("speech_16k", (192, 1, 1)),
        ("video", (4, 8, 8)),
        ("image_64", (1, 16, 16)),
        ("image_256", (1, 32, 32)),
        ("sound_16k_1s", (50, 8, 1)),
        ("sound_16k_10s", (500, 8, 1)),
        ("sound_24k_1s", (75, 8, 1)),
        ("sound_24k_10s", (750, 8, 1)),
        ("video_16", (8, 16, 16)),
    ],
)
def test_recipes_of_tokenizers_fit_their_streams(name, grid):
    full = config.load(f"{CONFIG.parent}/anyany/tokenizers.py:{name}")
    (stream,) = full.modalities
    spec = full.modalities[stream].spec(stream)
    learned = Learned(preprocessing={}, spec=spec, model=full.model, tensors={})
    assert learned.grid == grid
    assert full.model.num_tokens == np.prod(grid)
    assert len(full.model.array_shape(spec)) == len(full.model.piece)


@pytest.mark.slow
def test_codes_are_a_stream_like_any_other(trained, tmp_path):
    base = mini.get_config()
    codes = Codes(base=base.modalities["image"], path=str(trained), field="image")
    task = dataclasses.replace(
        base.tasks["text"],
        inputs=("image", "codes"),
        targets=("codes",),
        layout=Masked(input_tokens=16, target_tokens=12),
    )
    experiment = dataclasses.replace(
        mini.evaluated(),
        modalities={**base.modalities, "codes": codes},
        tasks={**base.tasks, "text": task},
        total_steps=4,
    )
    result = mmjax.train(experiment, tmp_path / "run", devices=ONE)
    fingerprint = result.program.vocabulary.spec("codes").fingerprint
    manifest = json.loads((trained / "tokenizer" / "tokenizer.json").read_text())
    assert fingerprint == manifest["fingerprints"]["codes"]
    assert (tmp_path / "run" / "tokenizers" / f"codes@{fingerprint[:12]}").is_dir()
    folder = tmp_path / "run" / "tokens" / f"codes@{fingerprint[:12]}"
    assert {p.name for p in folder.glob("*/*.npy")} == {"train.npy", "val.npy"}
    view = mmjax.load(str(tmp_path / "run"), devices=ONE)
    loaded = view.program.experiment.modalities["codes"]
    value = Numbers().open("val")[0]["image"]
    ids = np.load(next(folder.glob("*/val.npy")))
    np.testing.assert_array_equal(loaded.encode(value).ids_L, ids[0])


def test_what_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model=Transformer .* is no tokenizer; use an Autoencod"):
        mmjax.train_tokenizer(mini.get_config(), tmp_path)
    with pytest.raises(
        ValueError, match=r"objective Reconstruction needs an Autoencoder, not a model with lanes"
    ):
        dataclasses.replace(tokenizer(), model=mini.get_config().model)
    task = tokenizer().tasks["reconstruct"]
    with pytest.raises(ValueError, match="but a tokenizer is for one modality"):
        tokenizer(tasks={"a": dataclasses.replace(task, targets=("image",))})
    two = dataclasses.replace(task, objective=InfoNCE(), inputs=("image", "image"))
    with pytest.raises(ValueError, match="objective InfoNCE trains no Autoencoder"):
        tokenizer(tasks={"a": two})


@pytest.mark.ci
def test_the_command(tmp_path):
    fields = {"total_steps": 3, "tasks.reconstruct.batch_size": 32}
    fields["tasks.reconstruct.source.train_size"] = 64
    words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    workdir = str(tmp_path / "mask")
    done = commands.run("train-tokenizer", f"{CONFIG}:mask", "--workdir", workdir, *words)
    assert done.returncode == 0, done.stderr
    for word in ("usage", "perplexity", "dead", "mean square"):
        assert word in done.stdout
    assert (tmp_path / "mask" / "tokenizer" / "weights.safetensors").exists()
    assert (tmp_path / "mask" / "reconstructions.png").exists()


def whole(name: str, folder: Path) -> tuple[Codes, dict]:
    """A tokenizer of the demo, trained in a process with the flags that users have."""
    workdir, flags = str(folder / name), cpu.flags()  # those of the tests would stay
    done = commands.run("train-tokenizer", f"{CONFIG}:{name}", "--workdir", workdir, **flags)
    assert done.returncode == 0, done.stderr
    base = config.load(f"{CONFIG}:{name}").modalities[name]
    codes = Codes(base=base, path=workdir).fit(lambda: iter(()), folder / "copy")
    return codes, json.loads((folder / name / "tokenizer" / "report.json").read_text())


@pytest.mark.slow
def test_image_codes_of_the_demo_are_read_like_the_originals(tmp_path):
    from sklearn import neighbors

    codes, report = whole("image", tmp_path)
    assert report["usage"] > 0.8

    def halves(images) -> np.ndarray:
        return np.concatenate([np.reshape(images, (-1, 8, 2, 8))[:, :, i] for i in (0, 1)])

    def pixels(split: str, count: int):
        found = [Numbers().open(split)[i] for i in range(count)]
        labels = np.array([[e["number"] // 10, e["number"] % 10] for e in found]).T.ravel()
        return np.stack([e["image"] for e in found]), labels

    images, labels = pixels("train", 1500)
    reader = neighbors.KNeighborsClassifier(3).fit(halves(images / 255).reshape(-1, 64), labels)
    images, labels = pixels("test", 500)
    read = {}
    for key, seen in {
        "originals": images / 255,
        "codes": np.stack(codes.decode_batch(codes.encode_batch(list(images)))),
    }.items():
        both = (reader.predict(halves(seen).reshape(-1, 64)) == labels).reshape(2, -1).all(0)
        read[key] = both.mean()
    assert read["originals"] > 0.9
    assert read["codes"] > read["originals"] - 0.03


@pytest.mark.slow
def test_speech_is_recognised_after_its_codes(tmp_path):
    from sklearn import linear_model

    codes, report = whole("audio", tmp_path)
    assert report["usage"] > 0.8

    def features(spectrograms) -> np.ndarray:
        means = np.stack(spectrograms).reshape(-1, 44, 2, 32, 2).mean((2, 4))
        return means.reshape(len(means), -1)

    def clips(split: str, count: int):
        found = [Numbers().open(split)[i] for i in range(count)]
        return [e["audio"] for e in found], np.array([e["number"] for e in found])

    def spectrograms(sounds):
        return [codes.base.decode(codes.base.encode(sound)) for sound in sounds]

    sounds, numbers = clips("val", 1000)  # all numbers in all training voices
    judge = linear_model.RidgeClassifier(alpha=1e4).fit(features(spectrograms(sounds)), numbers)
    sounds, numbers = clips("test_new_voice", 200)
    before = np.mean(judge.predict(features(spectrograms(sounds))) == numbers)
    decoded = codes.decode_batch(codes.encode_batch(sounds))
    after = np.mean(judge.predict(features(decoded)) == numbers)
    assert before > 0.6
    assert after > 0.9 * before


@pytest.mark.slow
def test_mask_codes_of_the_demo_keep_the_strokes(tmp_path):
    codes, report = whole("mask", tmp_path)
    assert report["usage"] > 0.8
    masks = [Numbers().open("test")[i]["mask"] for i in range(300)]
    back = np.stack(codes.decode_batch(codes.encode_batch(masks)))[..., 0] > 0.5
    both, either = (back & masks).sum((1, 2)), (back | masks).sum((1, 2))
    assert np.mean(both / either) > 0.85
