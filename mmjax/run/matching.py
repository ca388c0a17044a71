"""Which parameter of another run becomes which of this one: by names and shapes, without arrays."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mmjax.experiment import Init

__all__ = ["Match", "by_pattern", "listed", "match", "matches", "renamed"]

LISTED = 12  # patterns in a line
Shape = tuple[int, ...]


class Match(NamedTuple):
    """Where each parameter of a model begins, by canonical name.

    Fields:
      taken: source of each parameter that is not fresh. copied: of those, (dim, number) of the
        experts that each get a copy. fresh: the others. unused: what is left of the source.
    """

    taken: dict[str, str]
    copied: dict[str, tuple[int, int]]
    fresh: list[str]
    unused: list[str]


def match(
    init: Init,
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    expert_dims: Mapping[str, int],
) -> Match:
    """Looks for the parameters of `target` in `source`.

    Args:
      source, target: shapes by canonical name.
      expert_dims: dim of the experts of the target's parameters that have one.

    Raises:
      ValueError: nothing is found, a parameter is missing, of another shape or found twice.
    """
    who = f"Init {init.path}"
    _check_experts(init, expert_dims, who)
    names: dict[str, str] = {}
    for name in source:
        if matches(name, init.select):
            new = renamed(name, init.rename)
            if new in names:
                raise ValueError(
                    f"{who}: {names[new]} and {name} are both {new} after `rename`; leave one out"
                    " of `select`, or give them two names."
                )
            names[new] = name
    taken = {name: names[name] for name in target if name in names}
    if not taken:
        raise ValueError(
            f"{who}: none of its parameters has a place here. It has {_few(source)}; selected and"
            f" renamed, that is {_few(names)}; this model has {_few(target)}. Write `select` and"
            " `rename` so that names meet."
        )
    copied = {}
    for name, old in taken.items():
        dim = expert_dims.get(name)
        if dim is not None and matches(name, init.dense_to_experts):
            without = (*target[name][:dim], *target[name][dim + 1 :])
            if source[old] == without:
                copied[name] = (dim, target[name][dim])
    wrong = {n: o for n, o in taken.items() if n not in copied and source[o] != target[n]}
    if wrong:
        raise ValueError(_shapes_differ(who, wrong, source, target, expert_dims))
    fresh = [name for name in target if name not in taken]
    missing = [name for name in fresh if not matches(name, init.allow_new)]
    if missing:
        raise ValueError(
            f"{who}: has no {listed(by_pattern(missing))}. If they shall be fresh, write allow_new="
            f"{(*init.allow_new, *by_pattern(missing))}; if they have other names there, give"
            " pairs of names in `rename`."
        )
    used = set(taken.values())
    return Match(taken, copied, fresh, [name for name in source if name not in used])


def _check_experts(init: Init, expert_dims: Mapping[str, int], who: str) -> None:
    for pattern in init.dense_to_experts:
        if not any(matches(name, (pattern,)) for name in expert_dims):
            there = listed(by_pattern(expert_dims)) or "none"
            raise ValueError(
                f"{who}: dense_to_experts has {pattern!r}, which matches no parameter of experts;"
                f" there is {there}."
            )


def _shapes_differ(
    who: str,
    wrong: Mapping[str, str],
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    expert_dims: Mapping[str, int],
) -> str:
    """The message; parameters that differ alike are told once."""
    told: Counter[str] = Counter()
    is_dense = False
    for name, old in wrong.items():
        (pattern,) = by_pattern([name])
        told[f"{pattern} is {source[old]} there and {target[name]} here"] += 1
        dim = expert_dims.get(name)
        is_dense |= dim is not None and len(source[old]) == len(target[name]) - 1
    experts = (
        " Name what is dense there and experts here in `dense_to_experts`; one expert must have the"
        " shape of the dense layer."
        if is_dense
        else ""
    )
    return (
        f"{who}: {listed(told)}.{experts} Make the model as it is there, or leave them out of"
        " `select` and name them in `allow_new`, so that they stay fresh."
    )


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a canonical name matches one of the patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """The name after the first pair (pattern, replacement) that matches it."""
    for pattern, replacement in pairs:
        parts = map(re.escape, re.split(r"\*+", pattern))
        found = re.fullmatch("(.*)".join(parts), name)
        if found:
            texts = iter(found.groups())
            return re.sub(r"\*+", lambda _: next(texts), replacement)  # noqa: B023
    return name


def by_pattern(names: Iterable[str]) -> dict[str, int]:
    """How many names there are of each kind; numbers of blocks become `*`."""
    return dict(Counter(re.sub(r"(?<=/)\d+(?=/|$)", "*", name) for name in names))


def listed(counts: Mapping[str, int], room: int = LISTED) -> str:
    """`enc/blocks/*/mlp/up: 4, enc/norm/scale: 1`, the first few."""
    told = [f"{pattern}: {count}" for pattern, count in counts.items()]
    more = [f"and {len(told) - room} more patterns"] if len(told) > room else []
    return ", ".join([*told[:room], *more])


def _few(names: Iterable[str]) -> str:
    return listed(by_pattern(names), 4) or "nothing"
