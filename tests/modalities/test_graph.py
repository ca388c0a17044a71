"""Graphs: order, cutting, broken sequences, and files."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.modalities.graph import Graph

GRAPH = Graph(classes=("a", "b"), max_nodes=3, max_edges=2, num_sentinels=0)
ARROWS = Graph(classes=("a", "b"), max_nodes=3, max_edges=4, num_sentinels=0, directed=True)


def graph(nodes, *edges):
    return {"nodes": list(nodes), "edges": list(edges)}


def back(modality, value):
    return modality.decode(modality.encode(value))


def test_nodes_keep_their_order_and_edges_are_sorted():
    np.testing.assert_array_equal(GRAPH.encode(graph("ba", (1, 0))).ids_L, [2, 1, 3, 4, 0])
    assert back(GRAPH, graph("bab", (2, 1), (1, 0))) == graph("bab", (0, 1), (1, 2))
    spec = GRAPH.spec("g")
    assert (spec.max_tokens, spec.vocab_size) == (3 + 4 + 1, 1 + 2 + 3)


def test_direction_counts_only_where_it_is_said_to():
    both = graph("aa", (1, 0), (0, 1), (1, 0))
    assert back(GRAPH, both) == graph("aa", (0, 1))
    assert back(ARROWS, both) == graph("aa", (0, 1), (1, 0))
    assert back(ARROWS, graph("aa", (1, 1))) == graph("aa", (1, 1))


def test_classes_may_be_numbers_and_edges_an_array():
    value = {"nodes": np.array([1, 0]), "edges": np.array([[1, 0]], np.uint8)}
    assert back(GRAPH, value) == graph("ba", (0, 1))
    assert back(GRAPH, {"nodes": ["a"]}) == graph("a")
    assert back(GRAPH, {"nodes": ["a"], "edges": np.zeros((0, 2))}) == graph("a")


def test_nodes_are_cut_with_their_edges_and_then_edges():
    piece = GRAPH.encode(graph("abab", (0, 3), (1, 2)))
    assert (GRAPH.decode(piece), piece.num_cut) == (graph("aba", (1, 2)), 1 + 2)
    piece = GRAPH.encode(graph("aba", (1, 2), (0, 2), (0, 1)))
    assert (GRAPH.decode(piece), piece.num_cut) == (graph("aba", (0, 1), (0, 2)), 2)
    piece = Graph(max_edges=0).encode({"nodes": [0, 0], "edges": [(0, 1)]})
    assert (piece.length, piece.num_cut) == (3, 2)


def test_an_edge_of_a_node_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"Graph: the edge \(0, 2\) is of a node .* 0\.\.1"):
        GRAPH.encode(graph("ab", (0, 1), (0, 2)))


def test_broken_graphs_hold_what_is_valid():
    piece = GRAPH.encode(graph("ab", (0, 1)))
    decoded = lambda *ids: GRAPH.decode(piece._replace(ids_L=np.array(ids, np.int32)))
    assert decoded(1, 2, 3, 4, 3) == graph("ab", (0, 1))  # half an edge, no end
    assert decoded(1, 2, 3, 5, 0) == graph("ab")  # to a node that is not there
    assert decoded(3, 1, 4, 2) == graph("ab", (0, 1))
    assert decoded(1, 1, 1, 1) == graph("aaa")
    assert decoded() == graph("")


def test_files_are_json(tmp_path):
    value = graph("ab", (0, 1))
    path = GRAPH.write(value, tmp_path / "a")
    assert path.read_text() == '{"nodes": ["a", "b"], "edges": [[0, 1]]}\n'
    assert back(GRAPH, GRAPH.read(str(path))) == value
    with pytest.raises(ValueError, match=r"Graph: .* cannot be read"):
        GRAPH.read("absent.json")


def test_classes_have_names_of_their_own():
    for classes in ((), ("a", "a")):
        with pytest.raises(ValueError, match="Graph: classes="):
            Graph(classes=classes)
