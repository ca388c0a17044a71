"""Tokenizer folders that someone else has made: one clear error, whatever they hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import toy_codes
from safetensors import numpy as safetensors

from mmjax.files import confined
from mmjax.tokenizers import learned as learned_lib
from mmjax.tokenizers.learned import MANIFEST, WEIGHTS, Learned
from mmjax.tokenizers.sentencepiece import MODEL_FILE, SentencePiece

CORPUS = tuple(f"{a}-{b}" for a in ("twenty", "thirty") for b in ("one", "two", "three", "four"))
PIECES = SentencePiece(vocab_size=320, num_sentinels=16)
ODD = (None, True, -1, 1e300, "x", [], [[]], {"class": "Text"}, {"class": ["x"]})


def codes(folder: Path) -> None:
    """Reads learned codes, which must be refused."""
    with pytest.raises(ValueError, match=r"^Learned: .*(train it again|copy it again)"):
        Learned.read(folder)


def pieces(folder: Path) -> None:
    """Reads text pieces, which must be refused."""
    with pytest.raises(ValueError, match=r"^SentencePiece: .*(delete|another) (the )?folder"):
        PIECES.fit(lambda: (), folder)


def refusal(read) -> str:
    """The message with which it is refused; empty = it is read."""
    try:
        read()
    except ValueError as error:
        return str(error)
    return ""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Learned codes."""
    toy_codes.learned().write(tmp_path / "codes")
    return tmp_path / "codes"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    PIECES.fit(lambda: CORPUS, tmp_path_factory.mktemp("text") / "pieces")
    return next(tmp_path_factory.getbasetemp().glob("text*/pieces"))


@pytest.fixture
def text(trained, tmp_path) -> Path:
    """Text pieces."""
    target = tmp_path / "pieces"
    target.mkdir()
    for file in trained.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# ------------------------------------------------------------------------ manifests

TEXTS = ("", "{", "[]", "3", "null", "\0", "[" * 100_000, '{"format": 1}', "\ud800")


@pytest.mark.fault("tokenizer.json is damaged or of another shape", "one error says so")
@pytest.mark.parametrize("content", TEXTS, ids=range(len(TEXTS)))
def test_manifests_that_are_no_manifests(content, folder, text):
    for path, refused in ((folder, codes), (text, pieces)):
        (path / MANIFEST).write_bytes(content.encode(errors="surrogatepass"))
        refused(path)


def changes(manifest: dict) -> list[tuple[str, ...]]:
    """Places in a manifest: its keys, and the keys of its dicts."""
    found: list[tuple[str, ...]] = [(key,) for key in manifest]
    return found + [(k, inner) for k, v in manifest.items() if isinstance(v, dict) for inner in v]


@pytest.mark.slow
def test_every_entry_of_a_manifest_may_be_anything(folder, text):
    """All odd values at all places: refused, or of no consequence, and never an error of ours."""
    for path, read in ((folder, Learned.read), (text, lambda f: PIECES.fit(lambda: (), f))):
        manifest, accepted = json.loads((path / MANIFEST).read_text()), []
        for place in changes(manifest):
            for value in ODD:
                changed = json.loads(json.dumps(manifest))
                inner = changed
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = value
                (path / MANIFEST).write_text(json.dumps(changed))
                if error := refusal(lambda read=read, path=path: read(path)):
                    assert error.startswith(("Learned: ", "SentencePiece: ")), place
                else:
                    accepted.append(place)
        # What is repeated, or is for people, and parts that no id depends on.
        kept = {"vocab_size", "grid", "parent", "fingerprint", "format", "preprocessing"}
        assert {p[0] for p in accepted} <= kept | {"spec", "model"}, accepted


# ---------------------------------------------------------------------- learned codes


def test_another_class_is_no_tokenizer(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    for other in ({"class": "Text"}, {"class": "tuple", "value": [1]}, {"class": "Autoencoderr"}):
        (folder / MANIFEST).write_text(json.dumps({**manifest, "model": other}))
        codes(folder)


@pytest.mark.fault("tokenizer.json tells of a model of absurd size", "refused before it is made")
@pytest.mark.parametrize(
    "fields",
    [
        {"encoder_layers": 10**9},
        {"width": 10**9},
        {"expansion": 10**9},
        {"quantizer": {"class": "FSQ", "levels": [2] * 40}},
        {"quantizer": {"class": "VQ", "num_codes": 10**12, "width": 4}},
        {"code_grid": [10**6, 10**6]},
        {"code_grid": [1] * 10**5, "piece": [1] * (10**5 + 1)},
        {"strides": [2] * 10**5},
        {"strides": [2**30], "width": 2**30},
        {"flow": {"class": "FlowDecoder", "layers": 10**9}},
        {"flow": {"class": "FlowDecoder", "steps": 10**9}},
        {"critic": {"class": "Critic", "levels": 40}},
    ],
    ids=lambda fields: str(fields)[:40],
)
@pytest.mark.timeout(60)
def test_a_model_of_absurd_size(fields, folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["model"].update(fields)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    codes(folder)


def weights(tensors: dict[str, np.ndarray], folder: Path, **changes) -> None:
    """Writes tensors with fingerprints that fit them, as one who means it does."""
    dataclasses.replace(toy_codes.learned(), tensors=tensors, **changes).write(folder)
    (folder / WEIGHTS).write_bytes(safetensors.save(tensors))


@pytest.mark.fault("weights do not fit the model that tokenizer.json tells of", "refused")
def test_weights_of_another_model(folder):
    tensors = dict(toy_codes.learned().tensors)
    name = next(iter(tensors))
    for value in (
        np.zeros((3, 3), np.float32),
        np.full_like(tensors[name], np.nan),
        tensors[name].astype(np.float16),
        tensors[name].astype(np.int64),
    ):
        weights({**tensors, name: value}, folder)
        codes(folder)
    tensors.pop(name)
    weights(tensors, folder)
    codes(folder)
    vq = dict(toy_codes.learned("vq").tensors)
    vq.pop("codebook/codes")
    weights(vq, folder, model=toy_codes.model("vq"))
    codes(folder)


@pytest.mark.fault("a safetensors file with a hostile header", "refused, without its memory")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little") + b"{}",
        (1 << 62).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a": {}}',
        *[
            len(header).to_bytes(8, "little") + header + b"\0" * 16
            for header in (
                b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 99]}}',
                b'{"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}',
                b'{"a": {"dtype": "F32", "shape": [4611686018427387904], "data_offsets": [0, 0]}}',
                b'{"a": {"dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]}}',
                b'{"a": {"dtype": "O", "shape": [2], "data_offsets": [0, 16]}}',
                b'{"a": ' + b"[" * 10_000,
            )
        ],
    ],
    ids=range(12),
)
def test_headers(content, folder):
    (folder / WEIGHTS).write_bytes(content)
    codes(folder)


# ------------------------------------------------------------------------ text pieces


def model(text: Path, content: bytes) -> None:
    """Another model, with the hash that fits it."""
    (text / MODEL_FILE).write_bytes(content)
    manifest = json.loads((text / MANIFEST).read_text())
    manifest["files"][MODEL_FILE] = hashlib.sha256(content).hexdigest()
    (text / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.fault("sentencepiece.model is no model, or one with other ids", "one error says so")
def test_models_that_do_not_fit(text, tmp_path):
    whole = (text / MODEL_FILE).read_bytes()
    for content in (b"", b"\0" * 100, whole[: len(whole) // 2], b"\xff" * 1000):
        model(text, content)
        pieces(text)
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 90)))
    for name, other, texts in (
        ("more ids", SentencePiece(vocab_size=400, num_sentinels=16), [letters]),
        ("other sentinels", SentencePiece(vocab_size=320, num_sentinels=3), CORPUS),
    ):
        model(text, other.fit(lambda texts=texts: texts, tmp_path / name).model)
        pieces(text)


def test_a_model_with_any_bytes_changed_is_refused_or_works(text):
    whole = (text / MODEL_FILE).read_bytes()
    for seed in range(60):
        rng = random.Random(seed)
        content = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        model(text, bytes(content))
        if error := refusal(lambda: PIECES.fit(lambda: (), text)):
            assert error.startswith("SentencePiece: ")
            continue
        ready = PIECES.fit(lambda: (), text)
        ids = ready.encode("twenty \u00e9")
        assert ids.max() < 320
        ready.decode(ids)


# ------------------------------------------------------------------ files of a folder


@pytest.mark.fault("a file of a tokenizer is a link that leads out of its folder", "refused")
@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS, MODEL_FILE])
def test_links_that_lead_out(name, folder, text, tmp_path):
    path, refused = (
        (text, pieces) if (text / name).exists() and name != WEIGHTS else (folder, codes)
    )
    content = (path / name).read_bytes()
    (tmp_path / "outside").write_bytes(content)
    (path / name).unlink()
    (path / name).symlink_to(tmp_path / "outside")
    refused(path)
    (path / name).unlink()
    (path / "inside").write_bytes(content)
    (path / name).symlink_to("inside")  # as tools that share content make them
    assert confined.read(path / name, 1 << 24, path) == content


def test_a_folder_may_be_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert Learned.read(tmp_path / "link").fingerprints == toy_codes.learned().fingerprints


@pytest.mark.fault("a file of a tokenizer is a pipe, a folder, or of absurd size", "refused")
@pytest.mark.timeout(60)
def test_what_is_no_plain_file(folder, text):
    for path, name, refused in (
        (folder, MANIFEST, codes),
        (folder, WEIGHTS, codes),
        (text, MODEL_FILE, pieces),
    ):
        content = (path / name).read_bytes()
        (path / name).unlink()
        os.mkfifo(path / name)
        refused(path)
        (path / name).unlink()
        (path / name).mkdir()
        refused(path)
        (path / name).rmdir()
        with open(path / name, "wb") as file:
            file.truncate(learned_lib.MAX_WEIGHTS + 1)  # takes no room on the disk
        refused(path)
        (path / name).unlink()
        (path / name).write_bytes(content)
