"""SentencePiece: exactness over Unicode, training once, the artefact, errors."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from mmjax.modalities.text import Text
from mmjax.tokenizers.sentencepiece import MODEL_FILE, SentencePiece
from mmjax.tokenizers.sentencepiece_model import SentencePieceModel

CORPUS = tuple(f"{a}-{b}" for a in ("twenty", "thirty") for b in ("one", "two", "three", "four"))
SMALL = SentencePiece(vocab_size=320, num_sentinels=16)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> SentencePiece:
    return SMALL.fit(lambda: CORPUS, tmp_path_factory.mktemp("text"))


def test_every_normalised_character_comes_back(fitted):
    def plain(code):
        char = chr(code)
        known = unicodedata.category(char) not in ("Cn", "Cs") and code != 0x2581
        return known and unicodedata.is_normalized("NFKC", char)

    count = 0
    for start in range(0, 0x110000, 256):
        # Two characters never meet, so that nothing composes.
        text = "".join(f"{chr(c)}|" for c in range(start, start + 256) if plain(c))
        assert fitted.decode(fitted.encode(text)) == text, hex(start)
        count += len(text) // 2
    assert count > 250_000


def test_text_is_normalised_by_nfkc(fitted):
    for text in ("\ufb01ne", "\uff11\uff12", "e\u0301", "\u00bd"):
        assert fitted.decode(fitted.encode(text)) == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize("text", ["", " ", "  a  b ", "\n", "a\0b", "\t x", "<s_0></s>", "<0x41>"])
def test_spaces_and_what_looks_special_come_back(fitted, text):
    ids = fitted.encode(text)
    assert fitted.decode(ids) == text
    assert not np.isin(ids, np.arange(3 + fitted.num_sentinels)).any()


def test_ids_lie_as_declared(fitted):
    pieces = [fitted._processor.id_to_piece(i) for i in range(3 + 16 + 256)]
    sentinels = [f"<s_{i}>" for i in range(16)]
    assert pieces[:19] == ["<unk>", "<s>", "</s>", *sentinels]
    assert pieces[fitted.first_sentinel] == "<s_0>"
    assert pieces[19:] == [f"<0x{i:02X}>" for i in range(256)]


def test_decoding_ends_at_the_end_and_leaves_out_specials(fitted):
    ids = fitted.encode("two")
    assert fitted.decode([1, 5, *ids, 2, *ids]) == "two"
    assert fitted.decode([*ids, fitted.vocab_size - 1]) == "two"  # an id that the corpus left free
    for bad in (-1, fitted.vocab_size):
        with pytest.raises(ValueError, match=r"outside 0\.\.319"):
            fitted.decode([bad])


def test_second_fit_loads_and_reads_no_values(tmp_path):
    first = SMALL.fit(lambda: CORPUS, tmp_path)

    def values():
        raise AssertionError("read again")

    second = SMALL.fit(values, tmp_path)
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.encode("three"), first.encode("three"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [MODEL_FILE, "tokenizer.json"]


def test_training_repeats_exactly_and_repetition_does_not_matter(tmp_path):
    first = SMALL.fit(lambda: CORPUS, tmp_path / "a")
    second = SMALL.fit(lambda: [None, *CORPUS, *CORPUS[::2]], tmp_path / "b")
    other = SMALL.fit(lambda: CORPUS[:-1], tmp_path / "c")
    assert first.fingerprint == second.fingerprint != other.fingerprint
    for file in (MODEL_FILE, "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_only_the_first_texts_are_read(tmp_path):
    def values():
        yield from CORPUS
        raise AssertionError("read too far")

    few = SentencePiece(vocab_size=320, num_sentinels=16, max_texts=len(CORPUS))
    assert few.fit(values, tmp_path).fingerprint


def test_long_texts_are_read_too(tmp_path):
    fitted = SMALL.fit(lambda: ["zebra " * 2000], tmp_path)
    assert len(fitted.encode("zebra")) < 6 + 1  # pieces, not bytes
    assert fitted.decode(fitted.encode("zebra " * 2000)) == "zebra " * 2000


def test_corpus_of_one_letter_works(tmp_path):
    fitted = SentencePiece().fit(lambda: ["a"], tmp_path)
    assert fitted.vocab_size == 32_000
    assert fitted.decode(fitted.encode("anything")) == "anything"


def test_another_size_in_the_folder_is_refused(tmp_path):
    SMALL.fit(lambda: CORPUS, tmp_path)
    with pytest.raises(ValueError, match=r"vocab_size': 320.* config says .*vocab_size': 400"):
        SentencePiece(vocab_size=400, num_sentinels=16).fit(lambda: CORPUS, tmp_path)


def test_damage_is_told(tmp_path):
    SMALL.fit(lambda: CORPUS, tmp_path)
    (tmp_path / MODEL_FILE).write_bytes(b"other")
    with pytest.raises(ValueError, match="is not the file that"):
        SMALL.fit(lambda: CORPUS, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        SMALL.fit(lambda: CORPUS, tmp_path)


def test_an_interrupted_fit_is_repeated(tmp_path):
    whole = SMALL.fit(lambda: CORPUS, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / MODEL_FILE).write_bytes(b"half")
    assert SMALL.fit(lambda: CORPUS, tmp_path).fingerprint == whole.fingerprint
    assert json.loads((tmp_path / "tokenizer.json").read_text())["fingerprint"] == whole.fingerprint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 259, "num_sentinels": 0}, "vocab_size=259 has no room .* at least 260"),
        ({"vocab_size": 300}, "num_sentinels=100 .* at least 360"),
        ({"num_sentinels": -1}, "num_sentinels=-1"),
        ({"max_texts": 0}, "max_texts=0"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(ValueError, match=f"SentencePiece: .*{message}"):
        SentencePiece(**fields)


def test_errors_of_the_corpus(tmp_path):
    with pytest.raises(ValueError, match="no text to train on"):
        SMALL.fit(lambda: [None, "", "  "], tmp_path)
    with pytest.raises(ValueError, match="a int is no text"):
        SMALL.fit(lambda: [3], tmp_path)
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 200)))
    with pytest.raises(ValueError, match=r"vocab_size=320 is less than the (\d+)") as error:
        SMALL.fit(lambda: [letters], tmp_path)
    enough = int(str(error.value).split("use at least ")[1].split(",")[0])
    larger = SentencePiece(vocab_size=enough, num_sentinels=16)
    assert larger.fit(lambda: [letters], tmp_path).fingerprint
    assert not list(tmp_path.glob(".*"))


def test_config_needs_no_sentencepiece():
    code = (
        "import sys; from mmjax.modalities.text import Text; Text().spec('text');"
        "from mmjax.modalities.image import Image; Image().spec('i');"
        "from mmjax.modalities.audio import Audio; Audio().spec('a');"
        "from mmjax.demo import numbers; numbers.Numbers().open('val');"
        "print([m for m in ('jax', 'sentencepiece', 'PIL', 'sklearn', 'scipy', 'soundfile')"
        " if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ------------------------------------------------------------------ other kinds, other models


def test_pairs_may_be_merged_in_place_of_a_unigram_model(tmp_path):
    """Ids are those of sentencepiece's own BPE; older fingerprints stay."""
    bpe = dataclasses.replace(SMALL, kind="bpe").fit(lambda: CORPUS, tmp_path / "bpe")
    unigram = SMALL.fit(lambda: CORPUS, tmp_path / "unigram")
    assert bpe.model != unigram.model
    model = sentencepiece.SentencePieceProcessor(model_proto=bpe.model)
    for text in (*CORPUS, "\u00e9 \u4e00"):
        assert bpe.encode(text).tolist() == model.encode(text)
        assert bpe.decode(bpe.encode(text)) == text
    assert "kind" not in json.loads((tmp_path / "unigram" / "tokenizer.json").read_text())["fields"]
    again = dataclasses.replace(SMALL, kind="bpe").fit(lambda: (), tmp_path / "bpe")
    assert again.fingerprint == bpe.fingerprint != unigram.fingerprint
    with pytest.raises(ValueError, match="but the config says"):
        SMALL.fit(lambda: (), tmp_path / "bpe")
    with pytest.raises(ValueError, match="kind='words' must be 'unigram' or 'bpe'"):
        SentencePiece(kind="words")  # pyright: ignore[reportArgumentType]


LAYOUTS = {
    "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 60},
    "llama": {"unk_id": 0, "bos_id": 1, "eos_id": 2, "byte_fallback": True, "model_type": "bpe",
              "vocab_size": 320},
}  # fmt: skip


def publish(layout: str, path: Path) -> Path:
    """A model whose special ids lie as in those that others publish."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=file, hard_vocab_limit=False,
            minloglevel=3, **LAYOUTS[layout],
        )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return publish("t5", tmp_path_factory.mktemp("published") / "t5.model")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_model_keeps_its_ids(layout, tmp_path):
    path, end = publish(layout, tmp_path / f"{layout}.model"), LAYOUTS[layout]["eos_id"]
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    size = model.get_piece_size()
    wanted = SentencePieceModel(vocab_size=size + 5, num_sentinels=5, end=end, path=str(path))
    ready = wanted.fit(lambda: (), tmp_path / "own")
    assert (ready.first_sentinel, ready.end_id) == (size, end)
    for text in (*CORPUS, "six"):
        assert ready.encode(text).tolist() == model.encode(text)
    ids = ready.encode(CORPUS[0])
    assert ready.decode(np.r_[ids, size, end, ids]) == CORPUS[0]  # a sentinel, and the end
    # The copy serves without the file, in other processes too, and any ids decode.
    moved = dataclasses.replace(wanted, path="").fit(lambda: (), tmp_path / "own")
    assert moved.fingerprint == ready.fingerprint
    assert pickle.loads(pickle.dumps(moved)).encode("two").tolist() == model.encode("two")
    assert isinstance(moved.decode(np.arange(size + 5)), str)
    modality = Text(tokenizer=ready, max_tokens=16)
    assert modality.decode(modality.encode("twenty-one")) == "twenty-one"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"vocab_size": 400}, r"vocab_size=400, but .* has \d+ pieces; use \d+, with num_sent"),
        ({"end": 2}, r"end=2, but .* ends with 1; use that"),
        ({"path": ""}, "path='' names no file"),
        ({"path": "nowhere.model"}, "path='nowhere.model' cannot be read"),
        ({"vocab_size": 5}, "vocab_size=5 has no room for num_sentinels=5"),
    ],
)
def test_a_published_model_that_does_not_fit_is_told(fields, told, published, tmp_path):
    size = sentencepiece.SentencePieceProcessor(model_file=str(published)).get_piece_size()
    right = {"vocab_size": size + 5, "num_sentinels": 5, "end": 1, "path": str(published)}
    with pytest.raises(ValueError, match=told):
        SentencePieceModel(**{**right, **fields}).fit(lambda: (), tmp_path)


def test_a_file_that_is_no_model_is_told(tmp_path):
    (tmp_path / "a.model").write_bytes(b"\xff" * 100)
    wanted = SentencePieceModel(path=str(tmp_path / "a.model"))
    with pytest.raises(ValueError, match=r"a\.model is no sentencepiece model"):
        wanted.fit(lambda: (), tmp_path / "own")
    with pytest.raises(ValueError, match="not loaded yet"):
        wanted.encode("a")
