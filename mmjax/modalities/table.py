"""Rows of tables as sequences of ids, a token a cell (Gorishniy et al., "Revisiting Deep Learning
Models for Tabular Data", for a token a column; Gorishniy et al., "On Embeddings for Numerical
Features in Tabular Deep Learning", for bins between quantiles)."""

from __future__ import annotations

import bisect
import csv
import dataclasses
import functools
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.config import ranges
from mmjax.config.error import nearest
from mmjax.files import confined
from mmjax.modalities import given, sequence
from mmjax.modalities.modality import Modality
from mmjax.modalities.structured import Bins
from mmjax.typing import Piece, TokenSpec

__all__ = ["BinEdges", "Table"]

MISSING = 0  # code of a column, before those of its values
SHOWN = 8  # names that an error lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinEdges:
    """Bins between given edges, such as quantiles of a column, which decode to their middles.

    A number below the first edge or above the last, as quantiles of a sample leave some, has the
    first or the last id.

    Fields:
      at: two or more ascending numbers.

    >>> pay = BinEdges(at=(0, 1, 10))
    >>> pay.bin(5.0), pay.bin(99), pay.middle(1)
    (1, 1, 5.5)
    """

    at: tuple[ranges.Finite, ...]

    def __post_init__(self):
        ranges.check(self)
        if len(self.at) < 2 or any(a >= b for a, b in zip(self.at, self.at[1:], strict=False)):
            raise ValueError(f"BinEdges: at={self.at}; give two or more ascending numbers.")

    @property
    def num(self) -> int:
        """Number of bins."""
        return len(self.at) - 1

    def bin(self, value: Any) -> int | None:
        """The id of a number; None if it is none."""
        number = given.number(value)
        if number is None:
            return None
        return min(max(bisect.bisect_right(self.at, number) - 1, 0), self.num - 1)

    def middle(self, place: int) -> float:
        """The number that an id stands for."""
        return (self.at[place] + self.at[place + 1]) / 2

    @property
    def rule(self) -> str:
        """The numbers that have an id, in words."""
        return "a finite number"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(Modality):
    """One row of a table: a token a column in the order of `columns`, and an end token.

    A numeric column has the bins of `Bins` or `BinEdges`, a categorical one its names. A cell may
    be the text of a number. A cell that is None, NaN, blank or not there is missing, for which each
    column has an id of its own.

    Fields:
      columns: name -> bins, or the names of its categories.
      num_sentinels: ids for masked spans; must exceed the runs of a masked sequence.

    >>> from mmjax.modalities.structured import Bins
    >>> columns = {"age": Bins(num=100), "sex": ("f", "m"), "income": BinEdges(at=(0, 1000, 9000))}
    >>> table = Table(columns=columns, num_sentinels=0)
    >>> piece = table.encode({"age": "41", "sex": "m"})
    >>> piece.ids_L, table.decode(piece)
    (array([ 43, 104, 105,   0], dtype=int32), {'age': 41, 'sex': 'm', 'income': None})
    """

    columns: dict[str, Bins | BinEdges | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    num_sentinels: ranges.Natural = 16

    def __post_init__(self):
        ranges.check(self)
        if not self.columns:
            raise ValueError("Table: columns={} says nothing; name at least one column.")
        for name, kind in self.columns.items():
            if isinstance(kind, (Bins, BinEdges)):
                continue
            if not isinstance(kind, tuple) or not all(isinstance(one, str) for one in kind):
                raise ValueError(
                    f"Table: columns[{name!r}]={kind!r} is no kind of column; give Bins, BinEdges,"
                    " or a tuple of names."
                )
            if not kind or len(set(kind)) < len(kind) or any(not one.strip() for one in kind):
                raise ValueError(
                    f"Table: columns[{name!r}]={kind[:SHOWN]}; give each category a name of its"
                    " own, which is not blank."
                )

    def spec(self, name: str) -> TokenSpec:
        """One sequence stream: ids for each column, of which the first means a missing cell."""
        return sequence.spec(name, self._num_codes, len(self.columns) + 1, self.num_sentinels)

    def encode(self, value: Mapping[str, Any] | None) -> Piece | None:
        """Ids int32 (columns + 1,), the end id last; position (p, p, p).

        Raises ValueError for anything but a dict, for other columns than those of `columns`, and
        for numbers and categories without an id.
        """
        if value is None:
            return None
        if not isinstance(value, Mapping):
            shown = repr(value)[:60].replace("\n", " ")
            raise ValueError(f"Table: {shown} is no dict; give {{column: cell}}.")
        if others := [str(key) for key in value if key not in self.columns]:
            raise ValueError(
                f"Table: no column {', '.join(others[:SHOWN])}; give some of"
                f" {', '.join(self.columns)}."
            )
        codes = [start + self._code(key, value.get(key)) for key, start in self._starts.items()]
        return sequence.piece(codes, self.num_sentinels)

    def _code(self, key: str, cell: Any) -> int:
        """The code of a cell among those of its column."""
        if isinstance(cell, np.ndarray) and cell.ndim == 0:
            cell = cell.item()
        is_nan = isinstance(cell, (float, np.floating)) and math.isnan(cell)
        if cell is None or is_nan or (isinstance(cell, str) and not cell.strip()):
            return MISSING
        kind = self.columns[key]
        if isinstance(kind, tuple):
            number = self._numbers[key].get(cell) if isinstance(cell, str) else None
            if number is None:
                near = nearest(cell, kind[:1000]) if isinstance(cell, str) else ""
                shown = repr(cell)[:60].replace("\n", " ")
                raise ValueError(
                    f"Table: {key}={shown} is no category{near}; give one of"
                    f" {', '.join(kind[:SHOWN])}."
                )
            return 1 + number
        place = kind.bin(_number(cell))
        if place is None:
            shown = repr(cell)[:60].replace("\n", " ")
            raise ValueError(f"Table: {key}={shown} is out of range; give {kind.rule}.")
        return 1 + place

    def decode(self, piece: Piece) -> dict[str, int | float | str | None]:
        """{column: cell} of all columns; None where a cell is missing, or nothing valid is said."""
        row: dict[str, int | float | str | None] = dict.fromkeys(self.columns)
        names, starts, seen = list(self._starts), list(self._starts.values()), set()
        for code in sequence.codes(piece, "Table", self.num_sentinels).tolist():
            if not 0 <= code < self._num_codes:
                continue
            number = bisect.bisect_right(starts, code) - 1
            name, place = names[number], code - starts[number] - 1
            if name in seen:
                continue  # the first one counts
            seen.add(name)
            kind = self.columns[name]
            if place >= 0:
                row[name] = kind[place] if isinstance(kind, tuple) else kind.middle(place)
        return row

    def read(self, item: str) -> Any:
        """{column: cell}, of a JSON file or JSON text; or the first row of a .csv file with names.

        Raises ValueError when it is none of them.
        """
        if not item.lower().endswith(".csv"):
            return sequence.read("Table", item)
        try:
            text = confined.read(item, sequence.MAX_FILE).decode("utf-8-sig")
            row = next(csv.DictReader(io.StringIO(text)), None)
        except (OSError, ValueError, csv.Error) as error:
            raise ValueError(
                f"Table: {item!r} cannot be read: {error}; give a .csv or a JSON file."
            ) from error
        if row is None or None in row:
            what = "has no row" if row is None else "has more cells than names"
            raise ValueError(f"Table: {item!r} {what}; give names and a row of as many cells.")
        return row

    def write(self, value: Mapping[str, Any], stem: str | Path) -> Path:
        """A JSON file: {column: cell}."""
        return sequence.write(dict(value), stem)

    @functools.cached_property
    def _starts(self) -> dict[str, int]:
        """The first code of each column."""
        starts, start = {}, 0
        for key, kind in self.columns.items():
            starts[key] = start
            start += 1 + _size(kind)
        return starts

    @property
    def _num_codes(self) -> int:
        return sum(1 + _size(kind) for kind in self.columns.values())

    @functools.cached_property
    def _numbers(self) -> dict[str, dict[str, int]]:
        """Numbers of the categories, by column and name."""
        kinds = self.columns.items()
        return {k: {n: i for i, n in enumerate(v)} for k, v in kinds if isinstance(v, tuple)}


def _size(kind: Bins | BinEdges | tuple[str, ...]) -> int:
    return len(kind) if isinstance(kind, tuple) else kind.num


def _number(cell: Any) -> Any:
    """The number that a text stands for; other cells unchanged."""
    try:
        return float(cell) if isinstance(cell, str) else cell
    except ValueError:
        return cell
