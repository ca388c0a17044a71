"""The text of a compiled program (HLO), taken apart: computations, instructions, shapes, loops.

It says what is written and nothing about cost; `plan.hlo` does. No jax is imported.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Bits of an element, by the name that HLO gives the dtype.
BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "f4e2m1fn": 4, "s8": 8, "u8": 8, "s16": 16,
    "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32,
    "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[((?:<=)?[\d,<=]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_END = re.compile(
    r'^\}(, execution_thread="[^"]*")?$'
)  # a thread: that of the SparseCores of a chip
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_TURNED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}  # of a comparison read from the right
# Element i of a loop's state plus c, as (i, c); the constant c as (None, c).
_Value = tuple[int | None, int]
# Where the value of the operand goes on unchanged.
_SAME = ("bitcast", "convert", "copy", "copy-done", "copy-start", "opt-barrier", "reshape")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: dtype, dims and the memory space (0 = the main memory of the device)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Without the padding that tiles of the hardware may add."""
        bits = BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 0)
        return math.ceil(math.prod(self.dims) * bits / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `rest` is what follows the operands."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    rest: str
    root: bool = False

    @functools.cached_property
    def arrays(self) -> tuple[Shape, ...]:
        """Arrays of the result, those of nested tuples in order."""
        return shapes(self.shape)

    def attribute(self, pattern: str) -> str:
        """First group of a pattern in what follows the operands, or an empty string."""
        found = re.search(pattern, self.rest)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """Where in the traced program this came from."""
        return self.attribute(r'op_name="([^"]*)"')

    @property
    def called(self) -> str:
        """The computation that a fusion, call or asynchronous start runs."""
        return self.attribute(r"\b(?:calls|to_apply)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of the schedule."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The result."""
        last = list(self.instructions.values())
        return next((i for i in last if i.root), last[-1])


@dataclasses.dataclass(frozen=True)
class Text:
    """A program: its computations by name, and the one that it enters by."""

    computations: dict[str, Computation]
    entry: str

    def trips(self, computation: str, loop: Instruction) -> int | None:
        """How often the body of a `while` runs; None when the text does not say.

        The back end's own `known_trip_count`, or else from the condition: a counter that starts at
        a constant, grows by a constant and is compared with one.
        """
        if known := _TRIPS.search(loop.rest):
            return int(known[1])
        body = self.computations[loop.attribute(r"\bbody=%?([\w.\-]+)")]
        compared = self._comparison(self.computations[loop.attribute(r"\bcondition=%?([\w.\-]+)")])
        state = self.computations[computation].instructions[loop.operands[0]]
        if compared is None or body.root.opcode != "tuple" or state.opcode != "tuple":
            return None

        def before(value: _Value) -> int | None:
            """What a value of the condition is when the loop begins."""
            if value[0] is None:
                return value[1]
            began = self._value(self.computations[computation], state.operands[value[0]], None)
            return began[1] + value[1] if began and began[0] is None else None

        def step(value: _Value) -> int | None:
            """By how much a turn changes it."""
            if value[0] is None:
                return 0
            after = self._value(body, body.root.operands[value[0]], None)
            return after[1] if after and after[0] == value[0] else None

        (left, right, direction), turned = compared, compared[:2][::-1]
        if step(left) == 0:
            (left, right), direction = turned, _TURNED.get(direction, direction)
        first, limit, by = before(left), before(right), step(left)
        if first is None or limit is None or by is None or step(right) != 0:
            return None
        return _count(first, by, limit, direction)

    def _comparison(self, condition: Computation) -> tuple[_Value, _Value, str] | None:
        """(left, right, direction) of a loop's condition, or None when it is another kind."""
        root, inside, arguments = condition.root, condition, None
        if root.opcode == "fusion":
            arguments = [self._value(condition, o, None) for o in root.operands]
            inside = self.computations[root.called]
            root = inside.root
        if root.opcode != "compare":
            return None
        left, right = (self._value(inside, o, arguments) for o in root.operands)
        return (left, right, root.attribute(r"direction=(\w\w)")) if left and right else None

    def _value(self, inside: Computation, name: str, arguments) -> _Value | None:
        """(i, c): element i of the loop's state plus c, or the constant c where i is None."""
        found = inside.instructions.get(name)
        if found is None:
            return None
        if found.opcode == "constant":
            literal = found.operands[0] if found.operands else ""
            return (None, int(literal)) if re.fullmatch(r"-?\d+", literal) else None
        if found.opcode == "parameter":
            return arguments[int(found.operands[0])] if arguments is not None else None
        if found.opcode in _SAME:
            return self._value(inside, found.operands[0], arguments)
        if found.opcode in ("add", "subtract"):
            a, b = (self._value(inside, o, arguments) for o in found.operands)
            if a is None or b is None or (a[0] is not None and b[0] is not None):
                return None
            if found.opcode == "add":
                return (a[0] if a[0] is not None else b[0], a[1] + b[1])
            return (a[0], a[1] - b[1]) if b[0] is None else None
        if found.opcode == "fusion":
            return self._fused(inside, found, arguments, None)
        if found.opcode == "get-tuple-element":
            index = int(found.attribute(r"\bindex=(\d+)"))
            source = inside.instructions[found.operands[0]]
            if source.opcode == "parameter" and arguments is None:
                return (index, 0)
            if source.opcode == "tuple":
                return self._value(inside, source.operands[index], arguments)
            if source.opcode == "fusion":
                return self._fused(inside, source, arguments, index)
        return None

    def _fused(self, outside: Computation, fusion: Instruction, arguments, index: int | None):
        """Value of a fusion's result, or of one element of it."""
        given = [self._value(outside, o, arguments) for o in fusion.operands]
        inside = self.computations[fusion.called]
        name = inside.root.name
        if index is not None:
            if inside.root.opcode != "tuple":
                return None
            name = inside.root.operands[index]
        return self._value(inside, name, given)


def _count(first: int, step: int, limit: int, direction: str) -> int | None:
    """Turns of `for i = first; i <direction> limit; i += step`."""
    if direction in ("GT", "GE"):
        first, step, limit = -first, -step, -limit
    if direction == "NE":
        return (limit - first) // step if step and (limit - first) % step == 0 else None
    if step <= 0 or direction == "EQ":
        return None
    room = limit - first + (direction in ("LE", "GE"))
    return max(0, -(-room // step))


def shapes(text: str) -> tuple[Shape, ...]:
    """Arrays of a shape as HLO writes it, those of nested tuples in order."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        sizes = tuple(int(d.removeprefix("<=")) for d in dims.split(",") if d)
        space = re.search(r"S\((\d+)\)", layout)
        found.append(Shape(dtype, sizes, int(space[1]) if space else 0))
    return tuple(found)


def parse(text: str) -> Text:
    """Takes a program apart.

    Raises:
      ValueError: there is no entry computation in it.
    """
    computations: dict[str, Computation] = {}
    entry, inside = "", None
    for line in _lines(text):
        if inside is None:
            head = _HEAD.match(line)
            if head and not line.startswith("HloModule"):
                inside = Computation(head[2], {})
                computations[head[2]] = inside
                entry = head[2] if head[1] else entry
        elif _END.match(line):
            inside = None
        elif found := _INSTRUCTION.match(line):
            made = _instruction(found[2], found[3], bool(found[1]))
            inside.instructions[made.name] = made
    if not entry:
        raise ValueError(
            "text of a compiled program: no ENTRY computation in it; give what "
            "`compiled.as_text()` returns"
        )
    return Text(computations, entry)


def _lines(text: str) -> Iterator[str]:
    """Lines, each instruction on one: attributes that a kernel brings may span several."""
    instruction = ""
    for line in map(str.rstrip, text.splitlines()):
        if instruction and not _END.match(line) and not _INSTRUCTION.match(line):
            instruction += line
            continue
        if instruction:
            yield instruction
        instruction = line if _INSTRUCTION.match(line) else ""
        if not instruction:
            yield line


def _instruction(name: str, line: str, root: bool) -> Instruction:
    """Takes `shape opcode(operands), rest` apart."""
    end = _closing(line, 0) if line.startswith("(") else line.index(" ")
    shape, line = line[:end], line[end:].lstrip()
    opening = line.index("(")
    closing = _closing(line, opening)
    opcode, inner, rest = line[:opening], line[opening + 1 : closing - 1], line[closing:]
    if opcode in ("constant", "parameter"):
        return Instruction(name, opcode, shape, (inner,), rest, root)
    operands = tuple(_last_word(part) for part in _split(inner))
    return Instruction(name, opcode, shape, operands, rest, root)


def _closing(line: str, opening: int) -> int:
    """The place after the parenthesis that closes the one at `opening`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(line, opening):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    raise ValueError(f"text of a compiled program: a parenthesis stays open in {line[:80]!r}")


def _split(operands: str) -> list[str]:
    """Operands at the commas that are outside every bracket."""
    parts, depth, began = [], 0, 0
    for found in re.finditer(r"[()\[\]{},]", operands):
        if found[0] == "," and depth == 0:
            parts.append(operands[began : found.start()])
            began = found.end()
        elif found[0] != ",":
            depth += 1 if found[0] in "([{" else -1
    return [p for p in (*parts, operands[began:]) if p.strip()]


def _last_word(operand: str) -> str:
    """`x` for `%x`, for `f32[2]{0} %x` and for `/*index=5*/%x`."""
    return operand.replace("*/", " ").split()[-1].removeprefix("%")
