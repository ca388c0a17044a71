"""Every number of every config class has a declared range, which holds wherever it is set."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pytest

from mmjax import config
from mmjax.config import ConfigError, names, ranges
from mmjax.config.ranges import Range
from mmjax.data.layouts import Aligned
from mmjax.demo.judges import NUMBERS_JUDGES
from mmjax.demo.numbers import Numbers
from mmjax.modalities.image import Image
from mmjax.modalities.structured import Bins
from mmjax.models.plan import Block
from mmjax.typing import TokenSpec, Vocabulary

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.py"
NO_CONFIGS = {
    "Sample": "the data side makes one for each row of each batch",
    "Stack": "a Transformer makes it, whose fields are checked",
    **dict.fromkeys(("Lengths", "Measured", "Shared", "Stream"), "figures of what was measured"),
}
# What the classes with required fields are made with, so that only the number is wrong.
PATH: dict[str, Any] = {"path": "data/*"}
ARGUMENTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("Files", "ArrayRecords", "Folder", "Parquet", "TFDS", "WebDataset",
                     "HuggingFace"), PATH),
    "Actions": {"dims": {"x": (-1.0, 1.0)}},
    "Adapter": {"block": Block()},
    "Bins": {"num": 3},
    "ByStream": {"experts": (0,)},
    "Classify": {"num_classes": 3},
    "Decoding": {"stream": "a"},
    "BinEdges": {"at": (0.0, 1.0)},
    "GatedCrossAttention": {"reads": "a"},
    "Label": {"num_classes": 3},
    "LoRA": {"block": Block()},
    "Generation": {"judges": NUMBERS_JUDGES},
    "Matrix": {"inputs": (0,), "outputs": (1,)},
    "Metadata": {"schema": {"a": Bins(num=2)}},
    "Reader": {
        "source": Numbers(), "split": "val", "modalities": {}, "vocabulary": Vocabulary(())
    },
    "Retrieval": {"modalities": ("a", "b")},
    "Run": {"pattern": (Block(),)},
    "Segmentation": {"names": ("a",)},
    "Table": {"columns": {"a": ("b",)}},
    "Task": {"source": Numbers(), "inputs": ("a",), "layout": Aligned(), "objective": None},
    "TokenSpec": {"name": "a", "kind": "grid", "max_tokens": 4, "vocab_size": 8},
    "Tokenizer": {"vocab_size": 8},
    "ZeroShot": {"modalities": ("a",)},
}  # fmt: skip
CLASSES = {
    name: cls
    for name, cls in {c.__name__: c for c in (*config.seam_classes().values(), TokenSpec)}.items()
    if dataclasses.is_dataclass(cls) and name not in NO_CONFIGS
}
NEVER: tuple[Any, ...] = (math.nan, -math.inf, True, False, "8", "eight", np.bool_(True), 10**400)
NUMBERS: tuple[Any, ...] = (-1, 0, math.inf, 1.5, 10**30, 1e300, np.int64(-1), np.float32(0))


class Number(NamedTuple):
    """One place of a number in the annotation of a field."""

    kind: type
    limit: Range | None  # None = none is declared
    filled: Callable[[Any], Any]  # a value of the field with this number, the others good ones


def numbers(hint: Any, limit: Range | None = None) -> Iterator[Number]:
    """The numbers of an annotation: alone, optional, in tuples and dicts."""
    while typing.get_origin(hint) is Annotated:
        limit = next((m for m in hint.__metadata__ if isinstance(m, Range)), limit)
        hint = hint.__origin__
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float):
        yield Number(hint, limit, lambda x: x)
    elif origin in (typing.Union, types.UnionType):
        for arg in args:
            yield from numbers(arg, limit)
    elif origin in (tuple, list):
        for i, arg in enumerate(args):
            for number in numbers(arg, limit):
                others = [good(a) for a in args if a is not Ellipsis]
                yield number._replace(filled=_item(others, i, number.filled))
    elif origin in (dict, Mapping, typing.Mapping):
        for number in numbers(args[0]):
            yield number._replace(filled=lambda x, f=number.filled: {f(x): good(args[1])})
        for number in numbers(args[1], limit):
            yield number._replace(filled=lambda x, f=number.filled: {good(args[0]): f(x)})


def _item(others: list, place: int, filled: Callable) -> Callable:
    return lambda x: tuple(filled(x) if i == place else o for i, o in enumerate(others))


def good(hint: Any) -> Any:
    """A value that an annotation allows."""
    if typing.get_origin(hint) is Annotated:
        inner, (limit,) = typing.get_args(hint)[0], hint.__metadata__
        return next(n for n in (0, 1, 2, 4) if limit.holds(n, inner))
    return {str: "a", int: 1, float: 1.0}.get(hint, ())


def fields(cls: type) -> list[tuple[str, Number]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return [(f.name, n) for f in dataclasses.fields(cls) for n in numbers(hints[f.name])]


def example(name: str) -> Any:
    if name == "Experiment":
        return config.load(f"{QUICKSTART}:tiny")
    return CLASSES[name](**ARGUMENTS.get(name, {}))


def refusal(made: Any, field: str, value: Any) -> str:
    """What is said of a value; empty when it is taken. Other errors are bugs, and pass."""
    try:
        dataclasses.replace(made, **{field: value})
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", [n for n, c in CLASSES.items() if fields(c)])
def test_every_number_is_in_its_range_or_refused(name):
    made = example(name)
    for field, number in fields(CLASSES[name]):
        assert number.limit is not None, (
            f"{name}.{field} is a number without a range; declare one (mmjax/config/ranges.py)"
        )
        huge = (10**30, -(10**30)) if number.kind is int else (1e300, -1e300, 10**300)
        for bad in (*NEVER, *huge, *NUMBERS):
            is_number = not any(bad is x for x in (*NEVER, *huge))
            is_kind = number.kind is float or isinstance(bad, (int, np.integer))
            fits = is_number and is_kind and number.limit.holds(bad, number.kind)
            said = refusal(made, field, number.filled(bad))
            # One that fits alone may still break a rule between fields, which has its own words.
            assert fits or (type(made).__name__ in said and field in said), (field, bad, said)


def test_the_walk_finds_each_kind_of_number_and_whether_a_range_is_declared():
    @dataclasses.dataclass
    class Mixed:
        plain: int
        alone: ranges.Count
        maybe: ranges.Fraction | None
        pair: tuple[ranges.Count, float]
        outer: Annotated[tuple[int, ...] | None, Range(2)]
        by: dict[int, ranges.Count]
        flag: bool
        text: str

    scope = {"ranges": ranges, "Annotated": Annotated, "Range": Range}
    hints = typing.get_type_hints(Mixed, scope, include_extras=True)
    found = {name: [n.limit for n in numbers(hint)] for name, hint in hints.items()}
    assert found == {
        "plain": [None],
        "alone": [Range(1)],
        "maybe": [Range(0, 1)],
        "pair": [Range(1), None],
        "outer": [Range(2)],
        "by": [None, Range(1)],
        "flag": [],
        "text": [],
    }


# ------------------------------------------------------------------------- what is said


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    count: ranges.Count = 1
    rate: ranges.Positive = 0.5
    warmup: Annotated[int, Range(0, also=(-1,))] = -1
    limit: Annotated[float, Range(0, 1, has_low=False, has_inf=True)] = 1.0
    share: ranges.BelowOne | None = None
    bias: ranges.Finite = 0.0
    size: tuple[ranges.Count, ranges.Count] = (1, 1)
    sizes: Annotated[tuple[int, ...] | None, Range(2)] = None
    alpha: ranges.NonNegative | dict[str, ranges.NonNegative] = 1.0
    free: int = 0

    def __post_init__(self):
        ranges.check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    parts: dict[str, Part] = dataclasses.field(default_factory=lambda: {"a": Part()})


PARTS: dict[str, type] = {names.name_of(cls): cls for cls in (Whole, Part)}
COUNT = "must be a whole number of 1 or more."
SAID = [
    ("count", 0, "0", COUNT),
    ("count", "eight", "'eight'", COUNT),
    ("count", 1.5, "1.5", COUNT),
    ("count", 2**31, "2147483648", "must be a whole number from 1 to 2147483647."),
    ("rate", 0.0, "0.0", "must be a number above 0."),
    ("rate", math.inf, "inf", "must be a number above 0 and at most 3e+38."),
    ("rate", math.nan, "nan", "must be a number above 0."),
    ("warmup", -2, "-2", "must be a whole number of 0 or more, or -1."),
    ("limit", 2.0, "2.0", "must be a number above 0 and at most 1, or inf."),
    ("share", 1.0, "1.0", "must be a number of 0 or more and below 1, or None."),
    ("share", "x", "'x'", "must be a number of 0 or more and below 1, or None."),
    ("bias", math.nan, "nan", "must be a finite number."),
    ("bias", -1e300, "-1e+300", "must be a number of -3e+38 or more."),
]
ITEMS = [
    ("size", (1, 0), "[1]=0", COUNT),
    ("sizes", (2, 1), "[1]=1", "must be a whole number of 2 or more, or None."),
    ("alpha", -1.0, "=-1.0", "must be a number of 0 or more."),
]
OBJECTS = [
    ("count", True, "=True", COUNT),
    ("count", None, "=None", COUNT),
    ("count", np.int64(0), "=0", COUNT),
    ("size", 1, "=1", f"must be a tuple of 2, each item {COUNT[8:]}"),
    ("size", (1, 1, 1), "=(1, 1, 1)", f"must be a tuple of 2, each item {COUNT[8:]}"),
    ("alpha", {"a": -1.0}, "['a']=-1.0", "must be a number of 0 or more."),
    ("alpha", {"a": True}, "['a']=True", "must be a number of 0 or more."),
]


@pytest.mark.parametrize(("field", "value", "shown", "rule"), [*SAID, *ITEMS, *OBJECTS])
def test_a_number_outside_is_named_with_the_rule(field, value, shown, rule):
    shown = shown if shown[0] in "[=" else f"={shown}"
    said = f"Part: {field}{shown} {rule}"
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        Part(**{field: value})
    assert ranges.problem(Part, field, value) == said


def test_a_number_of_thousands_of_digits_is_not_spelled_out():
    for field, value, said in (
        ("count", 10**5000, "=2**16609.. must be a whole number from 1 to 2147483647."),
        ("rate", -(10**5000), "=-2**16609.. must be a number above 0."),
    ):
        assert refusal(Part(), field, value) == f"Part: {field}{said}"


@pytest.mark.parametrize(("field", "value", "shown", "rule"), [*SAID, *ITEMS])
def test_python_json_and_the_command_line_say_the_same(field, value, shown, rule):
    shown = shown if shown[0] in "[=" else f"={shown}"
    said = f"Part: {field}{shown} {rule}"
    values = value if isinstance(value, tuple) else (value,)
    with pytest.raises(ConfigError) as caught:
        config.override(Whole(), [f"--parts.a.{field}", *map(str, values)])
    assert str(caught.value) == f"parts.a: {said}"
    tree = config.to_json(Whole())
    tree["parts"]["a"][field] = list(value) if isinstance(value, tuple) else value
    with pytest.raises(ConfigError) as caught:
        config.from_json(json.loads(json.dumps(tree)), PARTS)
    assert str(caught.value) == f"config.parts.a: {said}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", np.int64(3)),
        ("count", np.asarray(3, np.uint8)),
        ("rate", np.float32(0.5)),
        ("rate", 1),
        ("warmup", -1),
        ("limit", math.inf),
        ("share", None),
        ("share", 0),
        ("sizes", (2, 3)),
        ("sizes", None),
        ("alpha", {"a": 0.5, "*": 0}),
        ("free", "not declared, so not looked at"),
    ],
)
def test_a_number_inside_is_left_as_it_is(field, value):
    assert getattr(Part(**{field: value}), field) is value


def test_annotations_without_their_ranges_are_what_the_rest_sees():
    from mmjax.config import serial

    hints = serial.hints(Part)
    assert hints["count"] is int
    assert hints["share"] == float | None
    assert hints["size"] == tuple[int, int]
    root = Whole(parts={"a": Part(size=(2, 3), alpha={"b": 2})})
    again = config.from_json(json.loads(config.dump(root)), PARTS)
    assert again == root
    assert config.override(root, ["--parts.a.size", "4", "5"]).parts["a"].size == (4, 5)


def test_a_class_that_does_not_ask_still_works():
    @dataclasses.dataclass(frozen=True)
    class Mine(Image):
        gain: float = math.inf  # no range, and so no rule
        scale: Unknown = 1  # type: ignore[name-defined]  # noqa: F821

    assert Mine().gain == math.inf
    with pytest.raises(ValueError, match=r"Mine: patch=0 must be"):
        Mine(patch=0)  # inherited with its range, although one annotation says nothing


def test_rules_between_fields_come_after_the_ranges():
    with pytest.raises(ValueError, match=r"Image: patch=0 must be a whole number of 1 or more\."):
        Image(size=(8, 8), patch=0)  # and no division by zero
    with pytest.raises(ValueError, match="not divisible by patch=3"):
        Image(size=(8, 8), patch=3)
