"""Graphs as sequences of ids: the classes of the nodes, then the edges as pairs of nodes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.config import ranges
from mmjax.config.error import nearest
from mmjax.modalities import given, sequence
from mmjax.modalities.modality import Modality
from mmjax.typing import Piece, TokenSpec

__all__ = ["Graph"]

KEYS = ("nodes", "edges")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph(Modality):
    """The class of each node in the order given, then two tokens an edge, and an end token.

    Edges come sorted, by the first node and then the second; of one without direction the smaller
    number is first. An edge that is given twice is one edge; a node may have an edge to itself.
    Nodes beyond `max_nodes` are cut with their edges, then edges beyond `max_edges` in that order,
    and the tokens of both are counted. A graph without nodes is the end alone.

    Fields:
      classes: names of the classes of nodes.
      directed: whether (0, 1) and (1, 0) are two edges.
      max_nodes, max_edges: largest numbers of them.
      num_sentinels: ids for masked spans; must exceed the runs of a masked sequence.

    >>> graph = Graph(classes=("C", "O"), max_nodes=8, num_sentinels=0)
    >>> piece = graph.encode({"nodes": ["O", "C", "O"], "edges": [(1, 0), (1, 2)]})
    >>> piece.ids_L, graph.decode(piece)["edges"]
    (array([2, 1, 2, 3, 4, 4, 5, 0], dtype=int32), [(0, 1), (1, 2)])
    """

    classes: tuple[str, ...] = ("node",)
    directed: bool = False
    max_nodes: ranges.Count = 32
    max_edges: ranges.Natural = 64
    num_sentinels: ranges.Natural = 16

    def __post_init__(self):
        ranges.check(self)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"Graph: classes={self.classes[:8]}; give each class a name.")

    def spec(self, name: str) -> TokenSpec:
        """One sequence stream: ids of the classes, then the numbers of nodes."""
        num_codes = len(self.classes) + self.max_nodes
        max_tokens = self.max_nodes + 2 * self.max_edges + 1
        return sequence.spec(name, num_codes, max_tokens, self.num_sentinels)

    def encode(self, value: Mapping[str, Any] | None) -> Piece | None:
        """Ids int32 (nodes + 2 edges + 1,), the end id last; position (p, p, p).

        Args:
          value: {"nodes": classes, by name or number, "edges": pairs of numbers of nodes from 0};
            None = absent.

        Raises ValueError for other keys, unknown classes, other shapes, and edges of nodes that
        are not there.
        """
        if value is None:
            return None
        if not isinstance(value, Mapping) or set(value) - set(KEYS) or "nodes" not in value:
            shown = repr(value)[:60].replace("\n", " ")
            raise ValueError(f"Graph: {shown} is no graph; give {{'nodes': ..., 'edges': ...}}.")
        nodes = self._classes(value["nodes"])
        edges = self._edges(value.get("edges", ()), len(nodes))
        kept = edges[(edges < self.max_nodes).all(axis=1)][: self.max_edges]
        codes = [*nodes[: self.max_nodes], *(kept + len(self.classes)).reshape(-1).tolist()]
        total = len(nodes) + 2 * len(edges)
        return sequence.piece(codes, self.num_sentinels, num_cut=total - len(codes))

    def decode(self, piece: Piece) -> dict[str, list]:
        """{"nodes": names of classes, "edges": sorted pairs}; broken edges are left out."""
        codes = sequence.codes(piece, "Graph", self.num_sentinels).tolist()
        num = len(self.classes)
        nodes = [self.classes[code] for code in codes if 0 <= code < num][: self.max_nodes]
        ends = [code - num for code in codes if code >= num]
        pairs = zip(ends[::2], ends[1::2], strict=False)
        edges = {pair if self.directed else (min(pair), max(pair)) for pair in pairs}
        return {"nodes": nodes, "edges": sorted(e for e in edges if max(e) < len(nodes))}

    def read(self, item: str) -> Any:
        """A graph, from a JSON file or JSON text. Raises ValueError when it is neither."""
        return sequence.read("Graph", item)

    def write(self, value: Mapping[str, Any], stem: str | Path) -> Path:
        """A JSON file: {"nodes": [...], "edges": [[...], ...]}."""
        edges = [[int(a), int(b)] for a, b in value["edges"]]
        return sequence.write({"nodes": list(value["nodes"]), "edges": edges}, stem)

    def _classes(self, nodes: Any) -> list[int]:
        """Numbers of the classes of nodes."""
        if isinstance(nodes, np.ndarray):
            nodes = nodes.tolist()
        if not isinstance(nodes, Sequence) or isinstance(nodes, (str, bytes)):
            raise ValueError(f"Graph: nodes={nodes!r} is no list; give the class of each node.")
        found = []
        for node in nodes:
            number = self._numbers.get(node) if isinstance(node, str) else node
            if (
                not isinstance(number, (int, np.integer))
                or isinstance(number, bool)
                or not 0 <= number < len(self.classes)
            ):
                near = nearest(node, self.classes[:1000]) if isinstance(node, str) else ""
                shown = repr(node)[:60].replace("\n", " ")
                raise ValueError(
                    f"Graph: {shown} is no class of a node{near}; give one of"
                    f" {', '.join(self.classes[:8])}."
                )
            found.append(int(number))
        return found

    def _edges(self, value: Any, num_nodes: int) -> np.ndarray:
        """Int64 (edges, 2), sorted, each once."""
        edges = given.array("Graph", value, "(edges, 2)")
        if edges.size == 0 and edges.shape[0] == 0:
            return np.zeros((0, 2), np.int64)
        if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
            raise ValueError(
                f"Graph: edges of shape {edges.shape} and type {edges.dtype}; give whole numbers"
                " (edges, 2)."
            )
        if edges.min() < 0 or edges.max() >= num_nodes:
            bad = edges[((edges < 0) | (edges >= num_nodes)).any(axis=1)][0].tolist()
            raise ValueError(
                f"Graph: the edge {tuple(bad)} is of a node that is not there; give pairs of"
                f" 0..{num_nodes - 1}, or repair this example."
            )
        return np.unique(edges if self.directed else np.sort(edges, axis=1), axis=0).astype(int)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}
