"""Names of slices and nodes, as clouds write them: v5e-16, v5p-64, 2xv5e-256, h100x8, t4."""

from __future__ import annotations

import dataclasses
import math
import os
import re

from mmjax.config.error import ConfigError, nearest
from mmjax.plan.chips import CHIPS, Chip

__all__ = ["EXAMPLES", "Topology", "parse"]

EXAMPLES = "v5e-16, v5p-64, 2xv5e-256, h100x8, 2xh100x8 or t4"
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6": "v6e", "v7x": "tpu7x", "ironwood": "tpu7x"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one kind: slices of TPU chips, or nodes of GPUs.

    Fields:
      name: as it was given. slices: how many; a network of the data center joins them.
      chips: of one slice. GPU nodes are slices of their own here.
    """

    name: str
    chip: Chip
    slices: int
    chips: int

    @property
    def num_devices(self) -> int:
        """Devices in all."""
        return self.slices * self.chips * self.chip.devices_per_chip

    @property
    def num_hosts(self) -> int:
        """Hosts in all."""
        per_host = self.chip.chips_per_host
        return self.slices * (1 if self.chips <= self.chip.one_host else self.chips // per_host)

    @property
    def devices_per_slice(self) -> int:
        """Devices that see one another without the network of the data center."""
        return self.chips * self.chip.devices_per_chip

    @property
    def hbm_limit(self) -> int:
        """Bytes of a device that a program may use."""
        share = self.chip.usable
        if self.chip.platform == "gpu":
            given = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "")
            share = float(given) if re.fullmatch(r"0?\.\d+", given) else share
        return int(self.chip.hbm_bytes * share)

    @property
    def torus(self) -> tuple[int, ...]:
        """Chips along the axes of a slice, the shortest first, as clouds cut them."""
        if not self.chip.dims:
            return ()
        if self.chip.dims == 3 and self.chips == 4:
            return (2, 2, 1)
        sizes = [1] * self.chip.dims
        for factor in _primes(self.chips):
            sizes[sizes.index(min(sizes))] *= factor
        return tuple(sorted(sizes))


def _primes(number: int) -> list[int]:
    """Prime factors, the largest first."""
    found, factor = [], 2
    while number > 1:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return found[::-1]


def parse(name: str) -> Topology:
    """The topology of a name.

    Raises ConfigError for one that does not exist; the nearest that does is offered.
    """
    text = name.strip().lower().replace("_", "-")
    slices, rest = 1, text
    if many := re.fullmatch(r"(\d+)x([a-z].*)", text):
        slices, rest = int(many[1]), many[2]
    known = sorted((*CHIPS, *ALIASES), key=len, reverse=True)
    found = re.fullmatch(rf"({'|'.join(map(re.escape, known))})(?:[-x](\d+))?", rest)
    if found is None or not slices:
        word = re.split(r"[-x]\d+$", rest)[0]
        raise ConfigError(
            f"--topology {name}: unknown{nearest(word, CHIPS)} Write {EXAMPLES}; chips are"
            f" {', '.join(CHIPS)}."
        )
    chip = CHIPS[ALIASES.get(found[1], found[1])]
    number = int(found[2]) if found[2] else chip.cores_per_chip * (1 if chip.dims == 2 else 4)
    if chip.platform == "gpu":
        return _nodes(name, chip, slices, int(found[2] or 1))
    return _slice(name, chip, slices, number)


def _nodes(name: str, chip: Chip, nodes: int, number: int) -> Topology:
    if not 1 <= number <= chip.max_chips:
        whole = max(1, math.ceil(number / chip.max_chips)) * nodes
        raise ConfigError(
            f"--topology {name}: a node has 1 to {chip.max_chips} {chip.name}; for several write"
            f" {whole}x{chip.name}x{chip.max_chips}."
        )
    return Topology(name, chip, nodes, number)


def _slice(name: str, chip: Chip, slices: int, number: int) -> Topology:
    chips = number / chip.cores_per_chip
    offered = [n for n in _slices(chip) if n == chips]
    if not offered:
        near = sorted(_slices(chip), key=lambda n: abs(math.log(n / max(chips, 1e-9))))[:2]
        many = f"{slices}x" if slices > 1 else ""
        counted = "cores, two a chip" if chip.cores_per_chip == 2 else "chips"
        names = " or ".join(f"{many}{chip.name}-{n * chip.cores_per_chip}" for n in sorted(near))
        raise ConfigError(
            f"--topology {name}: there is no such slice; use {names} (the number counts {counted})."
        )
    return Topology(name, chip, slices, int(chips))


def _slices(chip: Chip) -> list[int]:
    """Chips of the slices that are whole halves of the largest, and those of cubes."""
    sizes = {2**n for n in range(15) if 2**n <= chip.max_chips}
    if chip.dims == 3:
        sizes = {n for n in sizes if n >= 4}
        cubes = (4 * n for n in range(1, 7))
        sizes |= {a * b * c for a in cubes for b in (4, 8, 16) for c in (4, 8, 16)}
    else:
        sizes -= {2}
    return sorted(n for n in sizes if n <= chip.max_chips)
