"""What XLA's compiler says of a step for described devices: memory, traffic, kernels, cycles."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterable
from typing import Any

import jax

from mmjax import console
from mmjax.experiment import Experiment
from mmjax.plan import hlo
from mmjax.plan.described import devices
from mmjax.plan.experts import GROUPED
from mmjax.plan.model import Estimate
from mmjax.plan.topology import Topology
from mmjax.run import program as program_lib

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}  # as XLA writes sizes


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step; bytes are those of a device.

    Fields:
      arguments, temporaries, aliased: of the compiler's own account; aliased = donated outputs.
      refused: what it says when the program does not fit; the other fields are then 0.
    """

    arguments: int = 0
    temporaries: int = 0
    aliased: int = 0
    outputs: int = 0
    seconds: float = 0.0
    text: str = ""
    refused: str = ""

    @property
    def hbm_bytes(self) -> int:
        """Arguments, what the outputs need beyond what is donated, and temporaries."""
        if self.refused:
            sizes = [float(n) * UNITS[u] for n, u in re.findall(r"([\d.]+)([KMGT])", self.refused)]
            return int(max(sizes, default=0))
        return self.arguments + self.temporaries + self.outputs - self.aliased

    def as_dict(
        self, topology: Topology, estimate: Estimate, grouped: float = 1.0
    ) -> dict[str, Any]:
        """What stands in for the estimates of a step, as plain data.

        Args:
          grouped: share of the FLOPs that kernels of experts tell which they compute.
        """
        found: dict[str, Any] = {
            "hbm_bytes": self.hbm_bytes,
            "compile_seconds": round(self.seconds, 1),
        }
        if self.refused:
            return {**found, "refused": self.refused}
        chip, reading = topology.chip, hlo.read(self.text)
        used = {
            name: hlo.Kernel(k.count, round(k.flops * (grouped if name in GROUPED else 1.0)))
            for name, k in reading.kernels.items()
        }
        reading = dataclasses.replace(reading, kernels=used)
        found |= {
            "arguments": self.arguments,
            "temporaries": self.temporaries,
            "aliased": self.aliased,
            "memory": {
                "arguments": self.arguments,
                "temporaries": self.temporaries,
                "outputs": self.outputs - self.aliased,
            },
            "collectives": {kind: c.bytes for kind, c in reading.collectives.items()},
            "kernels": {name: k.count for name, k in reading.kernels.items()},
            "cycles": reading.cycles,
            "kernel_flops": sum(k.flops for k in reading.kernels.values()),
        }
        if chip.clock and reading.cycles:
            busy = reading.estimated_seconds(chip.clock, chip.flops)
            exposed = {n: s for n, s in estimate.roofline.items() if n in ("ici", "dcn")}
            found |= {"estimated_seconds": busy, "bound_by": "cycles"}
            found["roofline_seconds"] = {"cycles": busy, **exposed}
        return found


def compile_steps(
    experiment: Experiment, topology: Topology, keys: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Compiled]:
    """Compiles steps, by (task, variant), for the devices of a topology; says a line for each."""
    program, found = program_lib.build(experiment, devices(topology)), {}
    for key in keys:
        console.say(f"compiling {'/'.join(key)} for {topology.name}; this takes minutes ...")
        found[key] = _compile(program, *key)
    return found


def _compile(program: program_lib.Program, task: str, variant: str) -> Compiled:
    began = time.perf_counter()
    try:
        executable, seconds = program_lib.compile_step(program, task, variant)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(seconds=time.perf_counter() - began, refused=_reason(str(error)))
    memory: Any = executable.memory_analysis()
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        seconds=seconds,
        text=executable.as_text(),
    )


def _reason(message: str) -> str:
    """The sentence with the figures."""
    found = re.search(r"[^.\n]*(?:Used|exceed)[^\n]*", message)
    return (found[0] if found else message.splitlines()[0]).strip()
