"""Text pieces learned from the corpus: a unigram or BPE model with byte fallback.

Kudo, "Subword Regularization: Improving Neural Network Translation Models with Multiple Subword
Candidates", ACL 2018; Sennrich et al., "Neural Machine Translation of Rare Words with Subword
Units", ACL 2016; Kudo and Richardson, "SentencePiece", EMNLP 2018.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmjax import files
from mmjax.config import ranges
from mmjax.files import confined
from mmjax.tokenizers.tokenizer import Tokenizer

__all__ = ["SentencePiece"]

FORMAT = 1  # of tokenizer.json
MODEL_FILE = "sentencepiece.model"
MAX_MANIFEST, MAX_MODEL = 1 << 20, 1 << 28  # bytes of the files that are read
UNKNOWN, BEGIN, END, FIRST_SENTINEL = 0, 1, 2, 3
NUM_BYTES = 256
CHUNK = 1000  # characters: sentencepiece skips texts of more than 4,192 bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePiece(Tokenizer):
    """Pieces of NFKC-normalised text; characters without a piece become UTF-8 bytes.

    Ids: 0 unknown (never produced from text), 1 begin, 2 end, then the sentinels `<s_0>`.., which
    text cannot produce, 256 bytes, and the learned pieces. `decode(encode(text))` is the text after
    sentencepiece's NFKC, except that U+2581, its symbol for spaces, becomes a space.

    Fields:
      vocab_size: largest number of ids; a small corpus yields fewer.
      num_sentinels: `<s_0>`.. that mark masked spans.
      max_texts: train on the first so many different texts.
      kind: `unigram`, the most probable pieces; or `bpe`, the most frequent pairs merged.
    """

    vocab_size: ranges.Count = 32_000
    num_sentinels: ranges.Natural = 100
    max_texts: ranges.Count = 1_000_000
    kind: Literal["unigram", "bpe"] = "unigram"

    # The trained model is kept on the object (and in its pickles) but is not a field: the saved
    # config says how to train, and the folder holds the result.
    _model = b""

    def __post_init__(self):
        super().__post_init__()
        if self.kind not in ("unigram", "bpe"):
            raise ValueError(f"SentencePiece: kind={self.kind!r} must be 'unigram' or 'bpe'.")
        fixed = FIRST_SENTINEL + self.num_sentinels + NUM_BYTES
        if self.vocab_size <= fixed:
            raise ValueError(
                f"SentencePiece: vocab_size={self.vocab_size} has no room for pieces beside 3"
                f" specials, num_sentinels={self.num_sentinels} and {NUM_BYTES} bytes; use at least"
                f" {fixed + 1}, better twice that."
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the fields that ids depend on and of the model; empty before `fit`."""
        return digest(self._fields(), self._model) if self._model else ""

    @property
    def model(self) -> bytes:
        """The model file as bytes; empty before `fit`."""
        return self._model

    @property
    def first_sentinel(self) -> int:
        """Id of `<s_0>`; -1 = no sentinels."""
        return FIRST_SENTINEL if self.num_sentinels else -1

    @property
    def end_id(self) -> int:
        """Id of the end token."""
        return END

    def encode(self, value: str | bytes) -> np.ndarray:
        """Ids int32 without an end id.

        Raises ValueError for anything but text (bytes must be UTF-8), and before `fit`.
        """
        return np.asarray(self._processor.encode(text_of(value)), np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """Text of the ids up to the first end id; begin, sentinels and unused ids are skipped.

        Raises ValueError for ids outside 0..vocab_size-1, and before `fit`.
        """
        return decoded(self, self._processor, ids)

    def fit(self, values: Callable[[], Iterable[Any]], folder: Path) -> SentencePiece:
        """Loads `folder`, or trains on the distinct texts of `values()` and writes it.

        Args:
          values: called if there is nothing to load; yields str, UTF-8 bytes, or None (skipped).
          folder: gets `sentencepiece.model` and, last, `tokenizer.json`; may be in a bucket.

        Raises ValueError if the folder holds another tokenizer or damaged files, if there is no
        text, or if vocab_size cannot hold the characters of the corpus.
        """
        from etils import epath

        path = epath.Path(folder)
        if files.exists(path / "tokenizer.json"):
            return self._load(path)
        model = self._train(values())
        write(path, "SentencePiece", self._fields(), model)
        return self._with(model)

    def _fields(self) -> dict[str, Any]:
        """What ids depend on beside the model; older tokenizers know one kind alone."""
        fields = {"vocab_size": self.vocab_size, "num_sentinels": self.num_sentinels}
        return fields if self.kind == "unigram" else {**fields, "kind": self.kind}

    def _with(self, model: bytes) -> SentencePiece:
        ready = dataclasses.replace(self)
        object.__setattr__(ready, "_model", model)
        return ready

    def _load(self, path: Any) -> SentencePiece:
        ready = self._with(read(path, "SentencePiece", self._fields()))
        ready._check(path / MODEL_FILE)
        return ready

    def _check(self, file: Any) -> None:
        """Raises ValueError unless the model's ids have the meaning that `fit` gives them."""
        sentinels = [f"<s_{i}>" for i in range(self.num_sentinels)]
        pieces = [f"<0x{i:02X}>" for i in range(NUM_BYTES)]
        wanted = ["<unk>", "<s>", "</s>", *sentinels, *pieces]
        try:
            processor, why = self._processor, ""
            size = processor.get_piece_size()
            if not len(wanted) <= size <= self.vocab_size:
                why = f"it has {size} pieces"
            elif [processor.id_to_piece(i) for i in range(len(wanted))] != wanted:
                why = f"its first {len(wanted)} pieces are others"
        except (RuntimeError, ValueError, OSError) as error:
            why = str(error).strip() or type(error).__name__
        if why:
            raise ValueError(
                f"SentencePiece: {file} is no model of vocab_size={self.vocab_size},"
                f" num_sentinels={self.num_sentinels} ({why}); delete the folder to train again."
            )

    def _train(self, values: Iterable[Any]) -> bytes:
        import sentencepiece

        texts = _different(values, self.max_texts)
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                model_type=self.kind,
                vocab_size=self.vocab_size,
                hard_vocab_limit=False,
                byte_fallback=True,
                split_digits=True,
                normalization_rule_name="nfkc",
                remove_extra_whitespaces=False,
                unk_id=UNKNOWN,
                bos_id=BEGIN,
                eos_id=END,
                # Control symbols, not user-defined ones: the text "<s_0>" stays text.
                control_symbols=[f"<s_{i}>" for i in range(self.num_sentinels)],
                num_threads=4,  # fixed, since sums and so the pieces depend on it
                minloglevel=3,
            )
        except RuntimeError as error:
            raise ValueError(self._reason(str(error), len(texts))) from error
        return model.getvalue()

    def _reason(self, message: str, num_texts: int) -> str:
        needed = re.search(r"required_chars\D*\d+ vs (\d+)", message)
        if needed:
            return (
                f"SentencePiece: vocab_size={self.vocab_size} is less than the {needed[1]} that the"
                f" characters of the corpus need; use at least {needed[1]}, better twice that."
            )
        return (
            f"SentencePiece: cannot train on {num_texts} different texts with"
            f" vocab_size={self.vocab_size}; give other texts or another size ({message})."
        )

    @functools.cached_property
    def _processor(self) -> Any:
        if not self._model:
            raise ValueError(
                "SentencePiece: not trained yet; call fit(values, folder) and use what it returns."
            )
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=self._model)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_processor"}


def decoded(tokenizer: Tokenizer, processor: Any, ids: np.ndarray) -> str:
    """Text of the ids up to the first end id, without those that the processor lacks."""
    ids, size = np.asarray(ids, np.int64), tokenizer.vocab_size
    if ids.size and not (ids.min() >= 0 and ids.max() < size):
        raise ValueError(
            f"{type(tokenizer).__name__}: ids {ids.min()}..{ids.max()} are outside 0..{size - 1};"
            " they belong to another tokenizer."
        )
    ends = np.flatnonzero(ids == tokenizer.end_id)
    ids = ids[: ends[0]] if ends.size else ids
    return processor.decode(ids[ids < processor.get_piece_size()].tolist())


# --------------------------------------------------------------------------- on disk


def write(path: Any, kind: str, fields: dict[str, Any], model: bytes) -> None:
    """Writes a model with what its ids depend on beside it; `tokenizer.json` last."""
    manifest = {
        "format": FORMAT,
        "class": kind,
        "fields": fields,
        "files": {MODEL_FILE: hashlib.sha256(model).hexdigest()},
        "fingerprint": digest(fields, model),
    }
    files.make_folder(path)
    with files.replacing(path / MODEL_FILE) as partial:
        partial.write_bytes(model)
    with files.replacing(path / "tokenizer.json") as partial:
        partial.write_text(json.dumps(manifest, indent=2) + "\n")


def read(path: Any, kind: str, fields: dict[str, Any]) -> bytes:
    """The model that `write` wrote. Raises ValueError for one of other fields, or damage."""
    try:
        manifest = json.loads(confined.read(path / "tokenizer.json", MAX_MANIFEST, path))
        written, known = manifest["fields"], str(manifest["files"][MODEL_FILE])
        have = manifest.get("class")
        model = confined.read(path / MODEL_FILE, MAX_MODEL, path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{kind}: {path} is damaged ({error}); delete the folder, and the next start makes it."
        ) from error
    if have != kind or written != fields:
        raise ValueError(
            f"{kind}: {path} holds {have!r:.40} {written!r:.200}, but the config says"
            f" {fields}; use these sizes, or another folder."
        )
    if hashlib.sha256(model).hexdigest() != known:
        raise ValueError(
            f"{kind}: {path / MODEL_FILE} is not the file that tokenizer.json names"
            f" (SHA-256 {known[:12]}); delete the folder, and the next start makes it."
        )
    return model


def digest(fields: dict[str, Any], model: bytes) -> str:
    """SHA-256 of everything that ids depend on."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode() + model).hexdigest()


def text_of(value: str | bytes) -> str:
    try:
        if isinstance(value, str):
            value.encode()
            return value
        if isinstance(value, bytes):
            return value.decode()
    except UnicodeError as error:
        raise ValueError(f"SentencePiece: text is no valid Unicode ({error}); repair it.") from None
    raise ValueError(
        f"SentencePiece: a {type(value).__name__} is no text; give str or UTF-8 bytes, or None"
        " when it is absent."
    )


def _different(values: Iterable[Any], limit: int) -> list[str]:
    """The first `limit` distinct texts; long ones are split into chunks."""
    texts: dict[str, None] = {}
    for value in values:
        if value is not None:
            texts.update(dict.fromkeys(_chunks(text_of(value))))
        if len(texts) >= limit:
            break
    if not texts:
        raise ValueError("SentencePiece: values holds no text to train on; check the text field.")
    return list(texts)[:limit]


def _chunks(text: str) -> Iterator[str]:
    for start in range(0, len(text), CHUNK):
        chunk = text[start : start + CHUNK].strip()
        if chunk:
            yield chunk
