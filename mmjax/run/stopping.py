"""A stop that all processes make at the same step, whichever of them was asked.

Each process has a flag on each of its devices, which goes into the step as an argument; the step
gives back the largest, among its metrics. So all processes read the same answer with the metrics of
the same step, without a round trip or a collective of its own. A single process needs none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epy

from mmjax.errors import Preempted
from mmjax.parallel import distributed
from mmjax.parallel import mesh as mesh_lib
from mmjax.run import lifecycle

with epy.lazy_imports():
    import jax

__all__ = ["Stopping", "abstract", "with_flags"]

ASKED = "asked"  # among the metrics of a step


class Stopping:
    """Whether this run is to stop, on a mesh."""

    def __init__(self, stop: lifecycle.Stop, mesh: Any):
        self._stop, self._mesh = stop, mesh
        self._heard, self._flags = False, ({}, ())

    def flags(self) -> tuple[Any, ...]:
        """Further arguments of a step: the flags of this process, made anew when they change."""
        shapes = abstract(self._mesh)
        if not shapes:
            return ()
        asked = self._stop.requested
        if self._flags[0] != {asked}:
            part = np.full(1, asked, np.int32)
            shape, sharding = shapes[0].shape, shapes[0].sharding
            made = jax.make_array_from_callback(shape, sharding, lambda index: part)
            self._flags = {asked}, (made,)
        return self._flags[1]

    def read(self, out: dict[str, Any]) -> dict[str, Any]:
        """Metrics of a step without the answer to its flags, which is kept."""
        if ASKED not in out:
            return out
        self._heard = self._heard or bool(np.asarray(out[ASKED]))
        return {name: value for name, value in out.items() if name != ASKED}

    @property
    def now(self) -> bool:
        """Whether to stop after this step: the same on all processes."""
        return self._heard if abstract(self._mesh) else self._stop.requested

    def pause(self) -> None:
        """Between two batches of an evaluation. Raises Preempted, on all processes, if one is to
        stop."""
        if distributed.any_process(self._stop.requested):
            self._heard = True
            raise Preempted("stopped in an evaluation")

    def stopped(self, step: int, saved: bool = True) -> Preempted:
        """The error that ends the run at a step."""
        name = self._stop.signal_name or "another process was asked to stop"
        kept = (
            f"saved step {step}; the same command goes on"
            if saved
            else ("nothing was saved before step 1; the same command begins anew")
        )
        return Preempted(f"{name}: {kept}.")


def abstract(mesh: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of the flags: one for each device, and none for a single process."""
    if distributed.count() == 1:
        return ()
    spec = jax.sharding.PartitionSpec(tuple(mesh.axis_names))
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return (jax.ShapeDtypeStruct((mesh.size,), np.int32, sharding=sharding),)


def with_flags(step: Callable[..., Any], shardings: Any) -> Callable[..., Any]:
    """`step(state, batch)` as `step(state, batch, flags)`, which adds their largest to the metrics;
    a single process's as it is."""
    mesh = shardings.step.mesh
    if not abstract(mesh):
        return step

    def run(state, batch, flags_N):
        state, out = step(state, batch)
        return state, out | {ASKED: flags_N.max()}

    return jax.jit(
        run,
        out_shardings=(shardings, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())),
        donate_argnums=0,
        compiler_options=mesh_lib.compiler_options(mesh),
    )
