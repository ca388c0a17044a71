"""How evenly experts are used between two logs: metrics, alarms, and the table of the report.

Tasks alternate, so a single step shows a part of the streams: what the steps record is added up, on
the host, where it arrives with their other metrics. (A sum on the device would be queued behind the
step that runs, and a log would wait for that.) A block records a token once, however often the
backward pass computes it again.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax import console
from mmjax.models import plan
from mmjax.run import parts
from mmjax.run.program import Program

FILE = "experts.json"  # the table of the newest log
RECORD = re.compile(r"(load|overflow)/(\d+)/(\d+)")  # of a step, at run and place of the layer plan
DEAD, BUSY, OVERFLOW = 0.01, 4.0, 0.01  # fair shares; fair shares; share of the chosen tokens
MIN_TOKENS = 100  # of a fair share: below, an expert may go without any by chance
BALANCE = "raise bias_rate or load_balance_loss_weight of the router"
ALARMS = {  # kind -> (what it is, what to do)
    "dead_experts": (
        f"experts with less than {100 * DEAD:g} % of a fair share",
        f"{BALANCE}, or use fewer experts (num_experts)",
    ),
    "busy_expert": (
        f"an expert with more than {BUSY:g} fair shares",
        f"{BALANCE}, or lower the learning rate if the router has collapsed",
    ),
    "overflow": (
        f"more than {100 * OVERFLOW:g} % of the chosen tokens dropped",
        f"raise capacity_factor of the experts, or even out the load: {BALANCE}",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """What experts of one layer did in the steps of a window.

    Fields:
      number: among the layers with experts. where: its lane, and its number in it.
      load_ME: tokens by stream and expert. overflow: share of the chosen tokens that was dropped;
        None where nothing can be.
      is_learned: whether a router learns to choose; else the data alone decide the load.
    """

    number: int
    where: str
    load_ME: np.ndarray
    overflow: float | None = None
    is_learned: bool = True

    @property
    def share_E(self) -> np.ndarray:
        """Load of each expert in fair shares: 1 = as much as the mean."""
        return shares(self.load_ME.sum(0))

    @property
    def entropy(self) -> float:
        """Of the load, over its logarithm of experts: 1 = even, 0 = one expert does it all."""
        part_E = self.share_E / max(len(self.share_E), 1)
        part_E = part_E[part_E > 0]
        return float(-(part_E * np.log(part_E)).sum() / np.log(max(self.load_ME.shape[1], 2)))

    def metrics(self, streams: Sequence[str]) -> dict[str, float]:
        """Scalars by name: `moe/layer_<number>/...`."""
        share_E, name = self.share_E, f"moe/layer_{self.number}"
        out = {
            f"{name}/load_max": float(share_E.max()),
            f"{name}/load_min": float(share_E.min()),
            f"{name}/entropy": self.entropy if len(share_E) > 1 else 1.0,
            f"{name}/dead": float((share_E < DEAD).mean()),
        }
        for stream, load_E in zip(streams, self.load_ME, strict=True):
            if load_E.sum():
                out[f"{name}/{stream}/load_max"] = float(shares(load_E).max())
        if self.overflow is not None:
            out[f"{name}/overflow"] = self.overflow
        return out

    def alarms(self) -> dict[str, str]:
        """The kinds of ALARMS that it gives, and the figure of each."""
        share_E, out = self.share_E, {}
        if self.is_learned and self.load_ME.sum() >= MIN_TOKENS * len(share_E):
            if dead := int((share_E < DEAD).sum()):
                out["dead_experts"] = f"{dead} of {len(share_E)}"
            if share_E.max() > BUSY:
                out["busy_expert"] = f"{share_E.max():.1f} fair shares"
        if self.overflow is not None and self.overflow > OVERFLOW:
            out["overflow"] = f"{100 * self.overflow:.1f} %"
        return out


class Window:
    """Sums of what steps record of their experts, since the last log.

    Args:
      folder: the workdir; None = no table is written.
    """

    def __init__(self, program: Program, folder: Any, main: bool = True):
        model = program.experiment.model
        self._streams = tuple(spec.name for spec in program.vocabulary.specs)
        self._main = main
        self._newest = parts.Newest(folder / FILE) if main and folder is not None else None
        self._places = plan.block_places(model)  # (run, place, repeat) -> (lane, number there)
        # Places with experts, and whether their router learns; the number of a layer is the same
        # whichever lanes a task runs.
        self._learned = {
            (r, p): block.router.uses_logits
            for r, run in enumerate(model.layer_plan())
            for p, block in enumerate(run.pattern)
            if block.router is not None
        }
        self._sums: dict[str, np.ndarray] = {}
        self._first, self._said = 0, set()

    def add(self, step: int, out: dict[str, Any]) -> dict[str, np.ndarray]:
        """Adds what a finished step gave of its experts; returns its other metrics.

        A skipped step adds nothing: its numbers are not finite.
        """
        out = {name: np.asarray(value) for name, value in out.items()}
        record = {name: out.pop(name) for name in list(out) if RECORD.fullmatch(name)}
        self._first = self._first or step + 1
        for name, value in record.items() if not out["skipped"] else ():
            self._learned.setdefault(_place(name), True)  # a block may have experts and no router
            self._sums[name] = self._sums.get(name, 0.0) + value.astype(np.float64)
        return out

    def layers(self) -> list[Layer]:
        """Layers whose experts have worked since the last log."""
        found = []
        known = [key for key in self._places if key[:2] in self._learned]
        for number, key in enumerate(sorted(known, key=lambda k: (k[0], k[2], k[1]))):
            run, place, repeat = key
            load_NME = self._sums.get(f"load/{run}/{place}")
            if load_NME is None or not load_NME[repeat, 1:].sum():
                continue
            dropped = self._sums.get(f"overflow/{run}/{place}")
            lost, chosen = (0.0, 0.0) if dropped is None else dropped[repeat]
            found.append(Layer(
                number=number, where=" ".join(map(str, self._places[key])),
                load_ME=load_NME[repeat, 1:], overflow=float(lost / chosen) if chosen else None,
                is_learned=self._learned[run, place],
            ))  # fmt: skip
        return found

    def row(self, step: int) -> dict[str, float]:
        """Metrics of the steps up to `step`, which is logged; the next begin a new window.

        Writes the table, and says each kind of alarm once.
        """
        layers, first = self.layers(), self._first
        self._sums, self._first = {}, 0
        out: dict[str, float] = {}
        for layer in layers:
            out |= layer.metrics(self._streams)
        found: dict[str, list[str]] = {kind: [] for kind in ALARMS}
        for layer in layers:
            for kind, figure in layer.alarms().items():
                found[kind].append(f"layer {layer.number} ({layer.where}): {figure}")
        if layers:
            out |= {f"moe/alarm/{kind}": float(len(where)) for kind, where in found.items()}
        for kind, where in found.items():
            if where and kind not in self._said:
                self._said.add(kind)
                console.say(f"warning: steps {first} to {step}: {warning(kind, where)}", self._main)
        if layers and self._newest is not None:
            self._write(first, step, layers)
        return out

    def _write(self, first: int, step: int, layers: list[Layer]) -> None:
        table = {
            "steps": [first, step],
            "streams": self._streams,
            "layers": [
                {"layer": x.number, "where": x.where, "load": x.load_ME.round(1).tolist()}
                for x in layers
            ],
        }
        assert self._newest is not None
        self._newest.put(json.dumps(table, separators=(",", ":")))


def _place(name: str) -> tuple[int, int]:
    """Run, and place in its pattern, of a record."""
    _, run, place = name.split("/")
    return int(run), int(place)


def shares(load_E: np.ndarray) -> np.ndarray:
    """Loads over their mean; zeros where there is no load."""
    return load_E / max(load_E.mean(), 1e-9)


def warning(kind: str, where: Sequence[str]) -> str:
    """What an alarm says: what it is, where, and what to do."""
    what, remedy = ALARMS[kind]
    more = f" and {len(where) - 2} more" if len(where) > 2 else ""
    return f"{what}: {', '.join(where[:2])}{more}; {remedy}."
