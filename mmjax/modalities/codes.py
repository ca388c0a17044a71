"""Learned codes of another modality, from `mmjax train-tokenizer`, as a stream of ids."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from etils import epath

from mmjax import config, files
from mmjax.modalities.modality import Modality
from mmjax.tokenizers.learned import MANIFEST, WEIGHTS, Learned, without_field
from mmjax.typing import Piece, TokenSpec, positions

__all__ = ["Codes", "content"]

REMEDY = "train one with `mmjax train-tokenizer CONFIG --workdir PATH` and set path to PATH"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codes(Modality):
    """A grid of ids that encode the pieces of `base`; the ids of a data set are computed once.

    Fields:
      base: the modality that the tokenizer was trained on; its `field` is used if this one has
        none.
      path: workdir of `mmjax train-tokenizer`. `fit` copies the tokenizer from there, once.

    >>> import numpy as np
    >>> from mmjax.modalities.image import Image
    >>> codes = Codes(base=Image(size=(8, 8), patch=4), path="runs/image_codes")
    >>> codes.adapted(np.zeros((16, 8, 3), np.uint8))
    '16 x 8 pixels are stretched to 8 x 8'
    >>> codes.spec("image_codes")  # without the tokenizer, which `fit` loads
    Traceback (most recent call last):
    ValueError: Codes: path='runs/image_codes' is not loaded yet, call fit(); or train one with ...
    """

    base: Modality
    # A run keeps its copy, so the path may change between its starts; fingerprints are compared.
    path: str = dataclasses.field(default="", metadata={"identity": "none", "is_moved": True})
    offline: ClassVar[bool] = True

    def __post_init__(self):
        if not self.field:
            object.__setattr__(self, "field", self.base.field)

    def spec(self, name: str) -> TokenSpec:
        """One discrete grid stream. Raises ValueError before `fit`."""
        learned = self._ready
        return TokenSpec(
            name=name,
            kind="grid",
            max_tokens=learned.model.num_tokens,
            vocab_size=learned.vocab_size,
            grid=learned.grid,
            levels=learned.levels,
            fingerprint=learned.fingerprints["codes"],
        )

    def encode(self, value: Any) -> Piece | None:
        """Ids int32 (tokens,) on the grid; position (time, row, column)."""
        piece = self.base.encode(value)
        if piece is None:
            return None
        learned = self._ready
        return self.piece(learned.encode(content(piece, learned.spec)[None])[0], piece.num_cut)

    def encode_batch(self, values: Sequence[Any]) -> np.ndarray:
        """Ids int32 [N, L] of values, none of which is absent. Raises ValueError if one is."""
        pieces = [self.base.encode(value) for value in values]
        spec = self._ready.spec
        there = [content(piece, spec) for piece in pieces if piece is not None]
        if len(there) < len(values):  # such as a video without sound: only `base` knows
            raise ValueError(f"Codes: {len(values) - len(there)} values are absent.")
        return self._ready.encode(np.stack(there))

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Ids of pieces of `base`."""
        if not pieces:
            return []
        spec = self._ready.spec
        ids_NL = self._ready.encode(np.stack([content(p, spec) for p in pieces]))
        return [self.piece(ids, p.num_cut) for ids, p in zip(ids_NL, pieces, strict=True)]

    def piece(self, ids_L: np.ndarray, num_cut: int = 0) -> Piece:
        """A piece with these ids."""
        ids_L = np.asarray(ids_L, np.int32)
        return Piece(positions(self._ready.grid), ids_L=ids_L, num_cut=num_cut)

    def decode(self, piece: Piece) -> Any:
        """The raw value, decoded by `base`. Raises ValueError for ids of another tokenizer."""
        if piece.ids_L is None:
            raise ValueError("Codes: decode needs ids; this piece holds values.")
        return self.decode_batch(np.asarray(piece.ids_L)[None])[0]

    def decode_batch(self, ids_NL: np.ndarray) -> list[Any]:
        """Raw values of ids [N, L]."""
        return self.raw(self._ready.decode(ids_NL))

    def raw(self, content: np.ndarray) -> list[Any]:
        """Raw values of pieces [N, J, P], or of ids [N, J], decoded by `base`."""
        spec = self._ready.spec
        position_LA = positions(spec.grid or content.shape[1])
        made = "ids_L" if spec.vocab_size else "values_LP"
        return [self.base.decode(Piece(position_LA, **{made: x})) for x in content]

    def read(self, item: str) -> Any:
        """Reads a file as `base` does."""
        return self.base.read(item)

    def write(self, value: Any, stem: Any) -> Path:
        """Writes a file as `base` does."""
        return self.base.write(value, stem)

    def adapted(self, value: Any) -> str:
        """Changes that `base` makes to the value, in words."""
        return self.base.adapted(value)

    def fit(self, values: Callable[[], Iterable[Any]], folder: Any) -> Codes:
        """Codes with the tokenizer in `folder`, copied there from `path` at first use.

        Raises ValueError if `path` holds no tokenizer, or one for other preprocessing.
        """
        del values
        target = epath.Path(folder)
        if files.exists(target / MANIFEST):
            return self._with(Learned.read(target), str(target))
        source = epath.Path(self.path) / "tokenizer"
        if not self.path or not files.exists(source / MANIFEST):
            where = f"path={self.path!r} " + ("holds no tokenizer" if self.path else "names none")
            raise ValueError(f"Codes: {where}; {REMEDY}.")
        ready = self._with(Learned.read(source), str(source))
        files.make_folder(target)
        for file in (WEIGHTS, MANIFEST):
            files.write_bytes(target / file, (source / file).read_bytes())
        return ready

    def given_fingerprint(self) -> str:
        """That of the tokenizer in `path`, if one is there."""
        source = epath.Path(self.path) / "tokenizer"
        with contextlib.suppress(OSError, ValueError):
            if self.path and files.exists(source / MANIFEST):
                return Learned.read(source).fingerprints["codes"]
        return ""

    def _with(self, learned: Learned, where: str) -> Codes:
        have = config.short_names(learned.preprocessing)
        own = {name.rpartition(":")[2] for name in config.seam_classes()}
        # Older tokenizers name no module; now only those of classes of mmjax do not.
        is_old = ":" not in str(have["class"]) and have["class"] not in own
        wanted = without_field(config.short_names(config.to_json(self.base), every=is_old))
        fresh = config.short_names(_defaults(type(self.base)), every=is_old)
        have = {**without_field(fresh), **without_field(have)}  # fields added since
        for name in sorted({*wanted, *have}):
            if wanted.get(name) != have.get(name):
                raise ValueError(
                    f"Codes: the tokenizer in {where} was trained with {name}={have.get(name)} of"
                    f" {have['class']}, but base says {wanted.get(name)}; use the base that it was"
                    " trained with, or train another."
                )
        ready = dataclasses.replace(self)
        object.__setattr__(ready, "_learned", learned)
        return ready

    @property
    def _ready(self) -> Learned:
        learned = self.__dict__.get("_learned")
        if learned is None:
            raise ValueError(
                f"Codes: path={self.path!r} is not loaded yet, call fit(); or {REMEDY}."
            )
        return learned


def _defaults(kind: type[Modality]) -> dict[str, Any]:
    """JSON of the fields of a class that have a default."""
    found = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            found[field.name] = config.to_json(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = config.to_json(field.default_factory())
    return found


def content(piece: Piece, spec: TokenSpec) -> np.ndarray:
    """The numbers [J, P] or ids [J] that the tokenizer codes; zeros follow a shorter value."""
    found = piece.values_LP if piece.ids_L is None else piece.ids_L
    assert found is not None
    if len(found) == spec.max_tokens:
        return found
    return np.pad(found, [(0, spec.max_tokens - len(found)), *[(0, 0)] * (found.ndim - 1)])
