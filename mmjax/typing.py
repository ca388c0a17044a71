"""What flows through mmjax: token specs, pieces, vocabularies, tokens, targets, batches.

Shape letters, used as suffixes of array names and in einsum strings everywhere:

    B rows of the global batch   W groups            R rows of a group (B = W R)
    L tokens of a row            S sample slots      U target room of a stream in a group
    D model width                H heads             K key/value heads     G head width
    F feed-forward width         E experts           C expert capacity     X choices of a token
    T routed tokens of a group   V vocabulary        P width of a piece    J pieces of a row
    N layers (stacked)           M streams           A = 3 position axes   Q queries

Parameters are float32; compute is `dtype`; softmax, losses, routers and norms are float32.
This module needs NumPy alone: data workers and the command line import it without jax.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from mmjax.config import ranges

NUM_AXES = 3  # (time, row, column) or (x, y, z)
RANGE_MULTIPLE = 128  # vocabulary ranges are padded to this, so that heads fill hardware tiles

Id = Annotated[int, ranges.Range(0, also=(-1,))]
Array = Any  # numpy.ndarray on the host, jax.Array inside a step
PyTree = Any
Metrics = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """One stream of the vocabulary.

    `kind` says how targets are predicted: `grid` in parallel, `sequence` left to right, `set` in
    any order, `vector` as one token. `vocab_size` 0 = continuous only, `width` 0 = discrete only.
    """

    name: str
    kind: Literal["grid", "sequence", "set", "vector"]
    max_tokens: ranges.Count
    vocab_size: ranges.Natural = 0
    width: ranges.Natural = 0
    grid: tuple[ranges.Count, ranges.Count, ranges.Count] | None = None
    text: bool = False
    fingerprint: str = ""
    first_sentinel: Id = -1  # local id of the first span sentinel; -1 = the stream has none
    num_sentinels: ranges.Natural = 0
    end_id: Id = -1  # local id of the end token of a sequence; -1 = none
    levels: tuple[
        ranges.Count, ...
    ] = ()  # ids are digits of these bases, the first one fastest; () = none
    # (rows, columns, channels) of a piece of a grid, whose pieces make a picture; () = they do not
    piece: tuple[ranges.Count, ...] = ()

    def __post_init__(self):
        ranges.check(self, f"TokenSpec {self.name!r}")
        if not self.vocab_size and not self.width:
            raise ValueError(
                f"Stream {self.name!r}: vocab_size=0 and width=0 describe nothing; give the number"
                " of codes or the width of a continuous piece."
            )
        if self.levels and int(np.prod(self.levels)) != self.vocab_size:
            raise ValueError(
                f"Stream {self.name!r}: levels={self.levels} make {int(np.prod(self.levels))} ids"
                f" but vocab_size={self.vocab_size}; they must be equal."
            )
        if self.piece and (len(self.piece) != 3 or int(np.prod(self.piece)) != self.width):
            raise ValueError(
                f"Stream {self.name!r}: piece={self.piece} must be (rows, columns, channels) of"
                f" width={self.width} numbers."
            )
        if self.grid is not None and int(np.prod(self.grid)) != self.max_tokens:
            raise ValueError(
                f"Stream {self.name!r}: grid={self.grid} has {int(np.prod(self.grid))} places but"
                f" max_tokens={self.max_tokens}; they must be equal."
            )


@functools.lru_cache(maxsize=1024)  # data workers ask for each piece
def positions(shape: int | tuple[int, int, int]) -> np.ndarray:
    """Positions float32 [L, A] of the tokens of a grid, or (p, p, p) of so many in a sequence.

    Read-only, since pieces share them.
    """
    grid = (shape,) if isinstance(shape, int) else shape
    axes = np.meshgrid(*map(np.arange, grid), indexing="ij")
    position_LA = np.empty((axes[0].size, NUM_AXES), np.float32)
    position_LA[:] = np.stack(axes, -1).reshape(-1, len(grid))
    position_LA.flags.writeable = False
    return position_LA


class Piece(NamedTuple):
    """One example's tokens of one stream, on the host.

    Exactly one of `ids_L` (int32, local to the stream) and `values_LP` (float32) is set.
    `num_cut` counts tokens that did not fit `max_tokens` and were dropped from the end.
    """

    position_LA: np.ndarray
    ids_L: np.ndarray | None = None
    values_LP: np.ndarray | None = None
    num_cut: int = 0

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.position_LA)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Disjoint id ranges of the streams, append-only; text streams share the first.

    Stream number `n` (1..M) is the place of its spec in `specs` plus one. Id 0 is no token.
    """

    specs: tuple[TokenSpec, ...]

    def __post_init__(self):
        names = [s.name for s in self.specs]
        if len(set(names)) != len(names):
            raise ValueError(f"Vocabulary: stream names repeat in {names}; each must be unique.")
        ranges: dict[str, tuple[int, int]] = {}
        next_start = RANGE_MULTIPLE
        text_range: tuple[int, int] | None = None
        for spec in self.specs:
            if not spec.vocab_size:
                continue
            size = -(-spec.vocab_size // RANGE_MULTIPLE) * RANGE_MULTIPLE
            if spec.text and text_range is not None:
                if text_range[1] - text_range[0] < size:
                    raise ValueError(
                        f"Stream {spec.name!r}: vocab_size={spec.vocab_size} exceeds the shared"
                        f" text range of {text_range[1] - text_range[0]} ids; text streams share"
                        " one tokenizer."
                    )
                ranges[spec.name] = text_range
                continue
            ranges[spec.name] = (next_start, next_start + size)
            next_start += size
            if spec.text:
                text_range = ranges[spec.name]
        numbers = {spec.name: i + 1 for i, spec in enumerate(self.specs)}
        object.__setattr__(self, "_numbers", numbers)
        object.__setattr__(self, "_ranges", ranges)
        object.__setattr__(self, "_size", next_start)

    @property
    def size(self) -> int:
        """Rows of the one embedding table (a multiple of 128)."""
        return self._size  # type: ignore[attr-defined]

    def number(self, name: str) -> int:
        """Stream number 1..M."""
        found = self._numbers.get(name)  # type: ignore[attr-defined]
        if found is None:
            raise ValueError(
                f"Vocabulary: no stream {name!r}; there are {[s.name for s in self.specs]}."
            )
        return found

    def spec(self, name: str) -> TokenSpec:
        """The spec of a stream."""
        return self.specs[self.number(name) - 1]

    def range(self, name: str) -> tuple[int, int]:
        """(start, stop) of the ids of a stream; (0, 0) when it is continuous only."""
        self.number(name)
        return self._ranges.get(name, (0, 0))  # type: ignore[attr-defined]

    def to_global(self, name: str, ids_L: np.ndarray) -> np.ndarray:
        """Local ids to vocabulary ids, range-checked (JAX gathers would clamp silently)."""
        self.check(name, ids_L)
        return (ids_L + self.range(name)[0]).astype(np.int32)

    def check(self, name: str, ids_L: np.ndarray) -> None:
        """Raises ValueError for local ids outside the stream's range."""
        spec = self.spec(name)
        if not len(ids_L):
            return
        low, high = np.minimum.reduce(ids_L), np.maximum.reduce(ids_L)  # half the time of min()
        if low < 0 or high >= spec.vocab_size:
            bad = int(low if low < 0 else high)
            raise ValueError(
                f"Stream {name!r}: token id={bad} is outside 0..{spec.vocab_size - 1}; the data was"
                " tokenized with another tokenizer, or the tokenizer is broken."
            )


class Values(NamedTuple):
    """Continuous pieces of one stream and the place in the row that each fills."""

    value_BJP: Array  # float32
    slot_BJ: Array  # int32; L = unused


class General(NamedTuple):
    """Rule of a view of which nothing is promised: segments and orders are whatever they are."""


class OneSegment(NamedTuple):
    """Rule of a view with at most one segment in a row, in its first slots."""


class InOrder(NamedTuple):
    """Rule of a view with at most one segment in a row, in its first slots, each of which has a
    later order than the one before."""


class Tokens(NamedTuple):
    """One view of a batch: static shapes, a pytree.

    A query sees a key when segments are equal and not 0, and (if the block isolates) streams are
    equal, and (if the block is causal) order of the key <= order of the query.
    """

    ids_BL: Array  # int32 vocabulary id; 0 = mask slot or continuous piece
    stream_BL: Array  # int32 stream number; 0 = padding
    segment_BL: Array  # int32 sample slot 1..S; 0 = padding
    order_BL: Array  # int32 rank of visibility
    position_BLA: Array  # float32
    values: dict[str, Values] = {}  # noqa: RUF012 (never written to)
    # What holds of every batch of this layout. It has no leaves, so a compiled program may rely on
    # it; whoever joins or reorders tokens puts `General` here.
    rule: General | OneSegment | InOrder = General()


class Targets(NamedTuple):
    """What is to be predicted of one stream, in room U of each group. Weight 0 = unused.

    `row_WU` and `slot_WU` point into the `target` view (or `input`, when there is no `target`),
    rows counted inside the group. `sample_WU` is row * S + slot of the sample, inside the group.
    """

    row_WU: Array  # int32
    slot_WU: Array  # int32
    sample_WU: Array  # int32
    weight_WU: Array  # float32
    label_WU: Array = None  # int32, local to the stream
    value_WUP: Array = None  # float32


class Batch(NamedTuple):
    """One group (on the host) or one global batch (on devices) of a task."""

    views: dict[str, Tokens]
    targets: dict[str, Targets]
    present_BSM: Array  # bool: the sample has stream m (number m + 1); absent differs from empty
    identity_BS: Array  # int32: equal = positives of one another
    sample_BSI: Array  # uint32 pair: (source index, epoch)
    weight_BS: Array  # float32: 0 = padding sample


class Loss(NamedTuple):
    """A named loss: its contribution to the total is sum(value_BS * weight_BS)."""

    value_BS: Array
    weight_BS: Array


def path_name(path) -> str:
    """Key path of a tree to `a/b/0/c`."""
    return "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
