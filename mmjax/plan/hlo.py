"""What a compiled program would do: busy cycles, kernels, collectives and large arrays.

`read(compiled.as_text())` reads the text of XLA's back ends for TPU and GPU, and of CPU as far as
it goes. All of it is what the compiler estimates or emits, nothing is measured:

- Cycles are XLA's own `estimated_cycles` of each instruction, which XLA:TPU alone writes. They are
  summed over the entry and the bodies of loops times their trips; of a conditional the dearest
  branch counts. Kernels and collectives have none, and overlap is not modelled.
- A collective counts once: an asynchronous one at its start, one whose clones stand in several
  async fusions (of a loop between its start and its end, too) where it starts. Clones share channel
  and chain; the channel alone does not tell, since XLA:TPU gives one to all the collectives that it
  combines. Its bytes are those of the whole array
  that one device takes part in: the result of an all-gather, the operand of all others (for a
  reduce-scatter the array before it is scattered, padded if the back end pads it).
- XLA:TPU writes many a reduce-scatter as an `all-reduce` and a slice of it in one fusion, or as an
  `all-reduce` whose op name alone says `reduce_scatter` or `psum_scatter`: these are
  reduce-scatters here. Where the compiler keeps an all-reduce and slices later, it moves the whole
  array and is an all-reduce here too, as on CPU.
- A ragged all-to-all counts as an all-to-all of its whole operand.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

from mmjax.plan import hlo_text
from mmjax.plan.hlo_text import Computation, Instruction

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
EFFICIENCY = 0.6  # the share of peak that a kernel is taken to reach where nothing says more

_KINDS = {**{k: k for k in COLLECTIVES}, "ragged-all-to-all": "all-to-all"}
_KERNELS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "mosaic_gpu", "__cudnn$", "__cublas$")
_CYCLES = r'"estimated_cycles":"(\d+)"'
_FLOPS = r'"cost_estimate":\{[^}]*"flops":"(\d+)"'
# Parts of an op name that say nothing about a kernel.
_PLAIN = {"pallas_call", "while", "body", "cond", "closed_call", "checkpoint", "shard_map"}
_PLAIN |= {"rematted_computation", "custom_vjp_call", "custom_jvp_call", "core_call", ""}
_RENAMED = ("bitcast", "get-tuple-element", "reshape")
# Results that are no buffer of their own.
_VIEWS = ("bitcast", "conditional", "constant", "get-tuple-element", "tuple", "while")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Calls of one kernel in a run of the program, and the FLOPs that its cost estimate tells (0
    when it has none)."""

    count: int
    flops: float


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind in a run of the program: how many, and bytes, also by dtype."""

    count: int
    bytes: int
    by_dtype: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Array:
    """Buffers of one dtype and shape: bytes of one of them, how many, and where one came from."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    count: int
    op_name: str


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one run of a program does on one device, as the compiler has it.

    Fields:
      cycles: estimated busy cycles of everything but kernels.
      kernels: by name.
      collectives: by kind.
      unknown_loops: loops whose trips the text does not say; their bodies count once.
    """

    cycles: float
    kernels: dict[str, Kernel]
    collectives: dict[str, Collective]
    unknown_loops: int = 0

    def estimated_seconds(
        self, clock: float, peak: float, kernel_efficiency: float = EFFICIENCY
    ) -> float:
        """Estimated busy time: cycles over the clock (Hz), and the FLOPs of kernels at a share of
        the device's peak (FLOP/s). Communication is not in it; compare programs with it, no more.
        """
        flops = sum(k.flops for k in self.kernels.values())
        return self.cycles / clock + flops / (kernel_efficiency * peak)


def read(text: str) -> Reading:
    """Reads a compiled program.

    Raises:
      ValueError: the text is not that of a program.
    """
    total = _Reader(hlo_text.parse(text)).total()
    kernels = {n: Kernel(total[t, n, "count"], total[t, n, "flops"])
               for t, n, what in total if t == "kernel" and what == "count"}  # fmt: skip
    collectives = {}
    for kind in COLLECTIVES:
        dtypes = {d: n for (t, k, d), n in total.items() if t == "bytes" and k == kind}
        if count := total["collective", kind, ""]:
            collectives[kind] = Collective(count, sum(dtypes.values()), dtypes)
    return Reading(total["cycles", "", ""], kernels, collectives, total["unknown loops", "", ""])


def arrays(text: str, min_bytes: int) -> tuple[Array, ...]:
    """Buffers of at least `min_bytes`, without the padding of tiles, largest first.

    A buffer is a result or a parameter of the entry or of a loop's body; what a fusion holds
    inside never exists whole. Loops carry buffers along: a shape may be counted more often than it
    takes memory.
    """
    parsed = hlo_text.parse(text)
    found: dict[tuple[str, tuple[int, ...]], list[Instruction]] = {}
    for computation in _control(parsed):
        loop = computation.name != parsed.entry
        for one in computation.instructions.values():
            if one.opcode in _VIEWS or (loop and one.opcode == "parameter"):
                continue
            if one.opcode.endswith("-done"):
                continue  # its start has it
            for shape in one.arrays:
                if shape.bytes >= min_bytes:
                    found.setdefault((shape.dtype, shape.dims), []).append(one)
    made = [
        Array(dtype, dims, hlo_text.Shape(dtype, dims).bytes, len(ones), ones[0].op_name)
        for (dtype, dims), ones in found.items()
    ]
    return tuple(sorted(made, key=lambda a: -a.bytes))


def _branches(one: Instruction) -> list[str]:
    """Computations of a conditional."""
    listed = one.attribute(r"branch_computations=\{([^}]*)\}")
    if listed:
        return [name.strip().removeprefix("%") for name in listed.split(",")]
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", one.rest)


def _runs(one: Instruction) -> list[str]:
    """Computations that an instruction runs one instruction after the other."""
    if one.opcode == "while":
        return [one.attribute(r"\bbody=%?([\w.\-]+)")]
    if one.opcode == "conditional":
        return _branches(one)
    if one.opcode in ("call", "async-start"):
        return [one.called]
    return []


def _control(parsed: hlo_text.Text) -> list[Computation]:
    """The entry and everything that is run as it is, each once."""
    names, left = [], [parsed.entry]
    while left:
        name = left.pop()
        if name not in names:
            names.append(name)
            for one in parsed.computations[name].instructions.values():
                left += _runs(one)
    return [parsed.computations[name] for name in names]


class _Reader:
    """Totals of computations, keyed (what, name, detail), times the trips of their loops."""

    def __init__(self, parsed: hlo_text.Text):
        self.parsed = parsed
        self.known: dict[str, Counter] = {}
        self.starts = _starts(parsed)

    def total(self) -> Counter:
        return self._of(self.parsed.entry)

    def _of(self, name: str) -> Counter:
        """Totals of one run of a computation."""
        if name not in self.known:
            total: Counter = Counter()
            for one in self.parsed.computations[name].instructions.values():
                total += self._cost(name, one)
            self.known[name] = total
        return self.known[name]

    def _cost(self, computation: str, one: Instruction) -> Counter:
        """Totals of one instruction."""
        inside = self.parsed.computations[computation]
        if one.opcode == "while":
            trips = self.parsed.trips(computation, one)
            total = _times(self._of(_runs(one)[0]), 1 if trips is None else trips)
            total["unknown loops", "", ""] += trips is None
            return total
        if one.opcode == "conditional":
            return max((self._of(n) for n in _branches(one)), key=_weight)
        total = Counter()
        for name in _runs(one):
            total += self._of(name)
        if kernel := _kernel(one):
            total["kernel", kernel, "count"] += 1
            total["kernel", kernel, "flops"] += int(one.attribute(_FLOPS) or 0)
        elif one.opcode == "fusion":
            total += self._fused(self.parsed.computations[one.called])
        total["cycles", "", ""] += int(one.attribute(_CYCLES) or 0)
        if kind := _kind(inside, one, fused=False):
            total += _moved(inside, one, kind)
        return total

    def _fused(self, fused: Computation) -> Counter:
        """Collectives and kernels of a fusion, which stands for its cycles itself."""
        total: Counter = Counter()
        for one in fused.instructions.values():
            if kind := _kind(fused, one, fused=True):
                if self.starts.get(_clones(one), fused.name) == fused.name:
                    total += _moved(fused, one, kind)
            elif kernel := _kernel(one):
                total["kernel", kernel, "count"] += 1
                total["kernel", kernel, "flops"] += int(one.attribute(_FLOPS) or 0)
            elif one.opcode == "fusion":
                total += self._fused(self.parsed.computations[one.called])
        return total


def _clones(one: Instruction) -> tuple[str, str, str]:
    """What the clones of a collective have in common."""
    opcode = one.opcode.removesuffix("-start")
    return opcode, one.attribute(r"channel_id=(\d+)"), one.attribute(r'chain_id="(\d+)"')


def _starts(parsed: hlo_text.Text) -> dict[tuple[str, str, str], str]:
    """The computation in which each collective of async fusions starts."""
    starts = {}
    for inside in parsed.computations.values():
        for one in inside.instructions.values():
            if one.opcode != "custom-call" or '"AsyncCollectiveStart"' not in one.rest:
                continue
            left = list(one.operands)
            while left:
                source = inside.instructions[left.pop()]
                if source.opcode in _KINDS:
                    starts[_clones(source)] = inside.name
                elif source.opcode in ("dynamic-slice", *_RENAMED):
                    left.append(source.operands[0])
    return starts


def _times(total: Counter, trips: int) -> Counter:
    """All but the number of unknown loops, times the trips."""
    return Counter({k: n if k[0] == "unknown loops" else n * trips for k, n in total.items()})


def _weight(total: Counter) -> tuple[float, float, float]:
    """By what the dearest branch is told: cycles, then FLOPs of kernels, then bytes."""
    flops = sum(n for k, n in total.items() if k[2] == "flops")
    return total["cycles", "", ""], flops, sum(n for k, n in total.items() if k[0] == "bytes")


def _kind(inside: Computation, one: Instruction, fused: bool) -> str:
    """The kind of a collective, or an empty string; the end of an asynchronous one is none."""
    kind = _KINDS.get(one.opcode.removesuffix("-start"), "")
    if kind != "all-reduce":
        return kind
    if re.search(r"reduce_scatter|psum_scatter", one.op_name):
        return "reduce-scatter"
    if not fused:  # the whole array has arrived before another instruction slices it
        return kind
    whole = {one.name}
    for other in inside.instructions.values():
        if other.opcode == "dynamic-slice" and other.operands[0] in whole:
            return "reduce-scatter"
        if other.opcode in _RENAMED:
            whole |= {other.name} if other.operands[0] in whole else set()
    return kind


def _moved(inside: Computation, one: Instruction, kind: str) -> Counter:
    """Count and bytes, by dtype, of one collective."""
    if kind == "all-gather":
        shapes = one.arrays
        if one.opcode.endswith("-start"):  # (operands, results, what the hardware needs)
            shapes = shapes[len(one.operands) : 2 * len(one.operands)]
    else:
        used = one.operands[:1] if one.opcode.startswith("ragged") else one.operands
        shapes = [
            s for o in used if o in inside.instructions for s in inside.instructions[o].arrays
        ]
    total: Counter = Counter({("collective", kind, ""): 1})
    for shape in shapes:
        total["bytes", kind, shape.dtype] += shape.bytes
    return total


def _kernel(one: Instruction) -> str:
    """The name of a kernel that is written by hand or comes from a vendor, or an empty string."""
    target = one.attribute(r'custom_call_target="([^"]*)"')
    if one.opcode != "custom-call" or not target.startswith(_KERNELS):
        return ""
    if target.startswith("__cu"):
        return target.removeprefix("__")
    for part in reversed(one.op_name.split("/")):
        while inner := re.fullmatch(r"\w+\((.*)\)", part):  # vmap(name), jvp(name), jit(name)
            part = inner[1]
        if part not in _PLAIN:
            return part
    return re.sub(r"[.\d]+$", "", one.name)
