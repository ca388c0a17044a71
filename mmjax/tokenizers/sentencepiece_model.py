"""A trained sentencepiece model, as T5, Llama and Gemma publish theirs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from mmjax import files
from mmjax.config import ranges
from mmjax.files import confined
from mmjax.tokenizers import sentencepiece as own
from mmjax.tokenizers.tokenizer import Tokenizer

__all__ = ["SentencePieceModel"]

NAME = "SentencePieceModel"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePieceModel(Tokenizer):
    """The pieces of a `.model` file: ids are those of the model, and sentinels follow them.

    What the model does not know, it gives its unknown id, or bytes if it has them.

    Fields:
      vocab_size: pieces of the model and sentinels together.
      num_sentinels: ids after those of the model, which mark masked spans.
      path: the file. `fit` copies it once; the copy is used from then on.
      end: id of the piece that ends a sequence: 1 for T5 and Gemma, 2 for Llama.

    >>> SentencePieceModel(vocab_size=32_100, path="t5.model", end=1).first_sentinel
    32000
    """

    vocab_size: ranges.Count = 32_100  # type: ignore[assignment]
    num_sentinels: ranges.Natural = 100
    # A run keeps its copy, so the path may change between its starts; fingerprints are compared.
    path: str = dataclasses.field(default="", metadata={"identity": "none"})
    end: ranges.Natural = 2

    _model = b""

    def __post_init__(self):
        super().__post_init__()
        if self.vocab_size <= self.num_sentinels + self.end:
            raise ValueError(
                f"{NAME}: vocab_size={self.vocab_size} has no room for num_sentinels="
                f"{self.num_sentinels} and a model with end={self.end}; use the number of pieces of"
                " the model and of sentinels."
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model and of the fields that ids depend on; empty before `fit`."""
        return own.digest(self._fields(), self._model) if self._model else ""

    @property
    def first_sentinel(self) -> int:
        """The first id after those of the model; -1 = no sentinels."""
        return self.vocab_size - self.num_sentinels if self.num_sentinels else -1

    @property
    def end_id(self) -> int:
        """Id of the end token."""
        return self.end

    def encode(self, value: str | bytes) -> np.ndarray:
        """Ids int32 without an end id. Raises ValueError for what is no text, and before `fit`."""
        return np.asarray(self._processor.encode(own.text_of(value)), np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """Text of the ids up to the first end id; control pieces and sentinels are skipped.

        Raises ValueError for ids outside 0..vocab_size-1, and before `fit`.
        """
        return own.decoded(self, self._processor, ids)

    def fit(self, values: Callable[[], Iterable[Any]], folder: Path) -> SentencePieceModel:
        """With the model in `folder`, copied there from `path` at first use.

        Raises ValueError if there is none, or one of another size or end.
        """
        del values
        target = epath.Path(folder)
        if files.exists(target / "tokenizer.json"):
            model = own.read(target, NAME, self._fields())
            return self._with(model, target / own.MODEL_FILE)
        if not self.path:
            raise ValueError(f"{NAME}: path='' names no file; give that of a .model file.")
        source = epath.Path(self.path)
        try:
            model = confined.read(source, own.MAX_MODEL)
        except (OSError, ValueError) as error:
            raise ValueError(f"{NAME}: path={self.path!r} cannot be read ({error}).") from error
        ready = self._with(model, source)
        own.write(target, NAME, self._fields(), model)
        return ready

    def _fields(self) -> dict[str, Any]:
        names = ("vocab_size", "num_sentinels", "end")
        return {name: getattr(self, name) for name in names}

    def _with(self, model: bytes, file: Any) -> SentencePieceModel:
        """Ready with a model. Raises ValueError unless its ids are those that the fields say."""
        ready = dataclasses.replace(self)
        object.__setattr__(ready, "_model", model)
        try:
            size, end = ready._processor.get_piece_size(), ready._processor.eos_id()
        except (RuntimeError, OSError) as error:
            why = str(error).strip() or type(error).__name__
            raise ValueError(f"{NAME}: {file} is no sentencepiece model ({why}).") from error
        if size + self.num_sentinels != self.vocab_size:
            raise ValueError(
                f"{NAME}: vocab_size={self.vocab_size}, but {file} has {size} pieces; use"
                f" {size + self.num_sentinels}, with num_sentinels={self.num_sentinels}."
            )
        if end != self.end:
            raise ValueError(
                f"{NAME}: end={self.end}, but {file} "
                + (f"ends with {end}; use that." if end >= 0 else "has no end; use another model.")
            )
        return ready

    @functools.cached_property
    def _processor(self) -> Any:
        if not self._model:
            raise ValueError(f"{NAME}: not loaded yet; call fit(values, folder).")
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=self._model)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_processor"}
