"""Canonical names of parameters: unstacked, independent of runs, mesh and shape of stack.

    <lane>/blocks/<n>/<part>/<leaf>   <lane>/norm/scale   <lane>/memory/kernel
    embed/<stream>/{table, levels, mask, stream, piece}    heads/<name>/<leaf>

Freeze patterns, `init`, import, export, `info` and diffs use them. The one embedding table is cut
by id range; text streams share a range, which has the name of the first of them.
"""

from __future__ import annotations

import fnmatch
from typing import NamedTuple

import jax
import numpy as np

from mmjax.models import plan, stems
from mmjax.typing import RANGE_MULTIPLE, PyTree, Vocabulary, path_name


class Part(NamedTuple):
    """Where a canonical parameter lies: path of the leaf and what is taken of its first dim."""

    path: str
    index: int | slice | None


def canonical_parts(
    config: plan.Transformer, vocabulary: Vocabulary, head_names: tuple[str, ...], paths: list[str]
) -> dict[str, Part]:
    """Canonical name -> place, for the parameter paths of a model of this plan."""
    names: dict[str, Part] = {}
    lanes, reads = config.lane_names(), list(config.read_lanes())
    places = plan.block_places(config)
    for path in paths:
        keys = path.split("/")
        if keys[0] == "runs":
            r, p, rest = int(keys[1]), int(keys[3]), "/".join(keys[4:])
            block, repeats = config.layer_plan()[r].pattern[p], config.layer_plan()[r].repeats
            for n in range(repeats):
                lane, number = places[r, p, n]
                name = f"{lane}/blocks/{number}/{block.canonical(rest)}"
                if name in names:
                    raise ValueError(
                        f"{type(block).__name__}: canonical() gives {name!r} to {path!r} and to"
                        f" {names[name].path!r}; two parameters need two names."
                    )
                names[name] = Part(path, n)
        elif keys[0] == "table":
            names |= _table_parts(path, vocabulary)
        elif keys[0] in ("mask", "stream"):
            for i, spec in enumerate(vocabulary.specs):
                names[f"embed/{spec.name}/{keys[0]}"] = Part(path, i)
        elif keys[0] in ("pieces", "levels"):
            number, leaf = stems.leaf(keys[1])
            leaf = "levels" if keys[0] == "levels" else leaf
            names[f"embed/{vocabulary.specs[number - 1].name}/{leaf}"] = Part(path, None)
        elif keys[0] == "heads":
            names[f"heads/{head_names[int(keys[1])]}/{'/'.join(keys[2:])}"] = Part(path, None)
        elif keys[0] == "final_norms":
            names[f"{lanes[int(keys[1])]}/norm/{keys[2]}"] = Part(path, None)
        else:
            assert keys[0] == "memory", path
            names[f"{reads[int(keys[1])]}/memory/kernel"] = Part(path, None)
    return names


def _table_parts(path: str, vocabulary: Vocabulary) -> dict[str, Part]:
    parts = {"embed/special/table": Part(path, slice(0, RANGE_MULTIPLE))}
    seen = set()
    for spec in vocabulary.specs:
        start, stop = vocabulary.range(spec.name)
        if stop and start not in seen:
            seen.add(start)
            parts[f"embed/{spec.name}/table"] = Part(path, slice(start, stop))
    return parts


def flatten(params: PyTree) -> dict[str, np.ndarray]:
    """Path -> leaf."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return {path_name(path): leaf for path, leaf in flat}


def to_canonical(params: PyTree, parts: dict[str, Part]) -> dict[str, np.ndarray]:
    """Parameters by canonical name."""
    leaves = flatten(params)
    return {
        name: leaves[part.path] if part.index is None else leaves[part.path][part.index]
        for name, part in parts.items()
    }


def canonical_shapes(params: PyTree, parts: dict[str, Part]) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters (abstract ones will do) by canonical name."""
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
    found = {}
    for name, part in parts.items():
        shape = shapes[part.path]
        if isinstance(part.index, int):
            shape = shape[1:]
        elif isinstance(part.index, slice):
            shape = (part.index.stop - part.index.start, *shape[1:])
        found[name] = shape
    return found


def from_canonical(
    arrays: dict[str, np.ndarray], like: PyTree, parts: dict[str, Part]
) -> tuple[PyTree, list[str]]:
    """Parameters in the structure of `like` (host arrays) and the canonical names not in `arrays`.

    Leaves keep the values of `like` where a name is missing.

    Raises:
      ValueError: an array has another shape.
    """
    leaves = {path: np.array(leaf) for path, leaf in flatten(like).items()}
    missing = []
    for name, part in parts.items():
        if name not in arrays:
            missing.append(name)
            continue
        index = slice(None) if part.index is None else part.index
        target = leaves[part.path][index] if leaves[part.path].ndim else leaves[part.path]
        if target.shape != np.shape(arrays[name]):
            raise ValueError(
                f"Parameter {name}: shape {np.shape(arrays[name])} does not fit {target.shape}; the"
                " models differ in width, heads or vocabulary."
            )
        leaves[part.path][index if leaves[part.path].ndim else ...] = arrays[name]
    tree = jax.tree.structure(like)
    return tree.unflatten([leaves[path] for path in flatten(like)]), missing


def trainable_mask(params: PyTree, patterns: tuple[str, ...], parts: dict[str, Part]) -> PyTree:
    """True for parameters whose canonical names match a pattern.

    Of a parameter that holds several, such as layers in a stack or streams in a table, some may
    match and some not: an array of bool [N] over its first dim.
    """
    held: dict[str, dict[str, Part]] = {}
    for name, part in parts.items():
        held.setdefault(part.path, {})[name] = part

    def match(path, leaf):
        own = held[path_name(path)]
        hits = {n: any(fnmatch.fnmatch(n, pattern) for pattern in patterns) for n in own}
        if len(set(hits.values())) == 1:
            return hits.popitem()[1]
        flags = np.zeros(leaf.shape[0], bool)
        for name, part in own.items():
            flags[part.index] = hits[name]
        return flags

    return jax.tree_util.tree_map_with_path(match, params)
