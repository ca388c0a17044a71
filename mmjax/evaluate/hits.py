"""Hits and misses of retrieval to look at: the query, what was found, what was right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from mmjax.evaluate import samples as samples_lib

__all__ = ["Hits"]

LARGE = 300_000  # bytes or pixels beyond which a picture is written as the model sees it
HUGE = 5_000_000  # of any value beyond which it is not written


class Hits:
    """The clearest hits and the worst misses of each direction, in `samples/<step>/<evaluator>/`.

    Only the main process of a run with a folder writes.

    Args:
      num: hits, and as many misses, of each direction.
    """

    def __init__(self, view: Any, evaluator: Any, num: int):
        self._view, self._evaluator, self._num = view, evaluator, num
        self._writer: samples_lib.Writer | None = None

    def _open(self) -> samples_lib.Writer | None:
        import jax

        if self._writer is None and self._num and self._view.folder and not jax.process_index():
            known = self._view.program.experiment.evaluators.items()
            name = next((n for n, e in known if e == self._evaluator), "retrieval")
            folder = self._view.folder / "samples" / str(self._view.step) / name
            self._writer = samples_lib.Writer(folder)
        return self._writer

    def add(self, a: str, b: str, examples: list, galleries: Iterable[Any]) -> None:
        """Chooses among the queries of a direction and writes them, if both kinds of values have a
        file format."""
        writer = self._open()
        if writer is None:
            return
        found: list[tuple[float, int, int, int, int, int]] = []
        for g in galleries:
            for row, query in enumerate(g.queries.tolist()):
                scores, same = g.scores_QC[row], g.same_QC[row]
                if not same.any() or same.all():
                    continue
                right = int(np.argmax(np.where(same, scores, -np.inf)))
                wrong = int(np.argmax(np.where(same, -np.inf, scores)))
                rank = 1 + int(np.sum(scores[~same] >= scores[right]))
                best = right if rank == 1 else wrong
                places = (int(g.candidates[best]), int(g.candidates[right]))
                margin = float(scores[right] - scores[wrong])
                found.append((margin, rank, query, *places, len(scores)))
        clear = sorted((f for f in found if f[1] == 1), reverse=True)[: self._num]
        bad = sorted((f for f in found if f[1] > 1), key=lambda f: (-f[1], f[0]))[: self._num]
        for _, rank, query, best, right, size in (*clear, *bad):
            self._write(writer, (a, examples[query]), (b, examples[best]), examples[right], {
                "kind": "retrieval", "rank": rank, "gallery": size,
            })  # fmt: skip

    def _write(self, writer, query, best, right, more: dict[str, Any]) -> None:
        (a, asked), (b, found) = query, best
        values = [self._view.value(m, e) for m, e in ((a, asked), (b, found), (b, right))]
        if any(_size(value) > HUGE for value in values):
            return
        sides = {"given": {a: self._shown(a, asked)}, "wanted": {b: self._shown(b, found)}}
        if more["rank"] > 1:
            sides["right"] = {b: self._shown(b, right)}
        try:
            writer.add(**sides, **more)
        except ValueError:  # a modality without a file format is not shown
            return

    def _shown(self, name: str, example: Any) -> tuple[Any, Any]:
        """A modality and the value to write: large pictures as the model sees them."""
        modality = self._view.program.experiment.modalities[name]
        value = self._view.value(name, example)
        if _size(value) > LARGE and (piece := modality.encode(value)) is not None:
            decoded = modality.decode(piece)
            if isinstance(decoded, np.ndarray) and decoded.ndim == 3:
                return modality, decoded
        return modality, value

    def close(self) -> None:
        """Writes the list of what was added."""
        if self._writer is not None:
            self._writer.close()


def _size(value: Any) -> int:
    return len(value) if isinstance(value, bytes) else np.size(value)
