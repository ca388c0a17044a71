"""Several processes: one call before anything touches a device.

`JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` describe plain hosts; on Cloud
TPU, Slurm and others jax finds them itself when `MMJAX_DISTRIBUTED=1`.
"""

from __future__ import annotations

import itertools
import os

from etils import epy

with epy.lazy_imports():
    import jax


def initialize() -> None:
    """Joins the other processes, once; nothing for a single process."""
    if jax.distributed.is_initialized():
        return
    if "JAX_NUM_PROCESSES" in os.environ:
        try:
            jax.distributed.initialize(
                os.environ["JAX_COORDINATOR_ADDRESS"],
                int(os.environ["JAX_NUM_PROCESSES"]),
                int(os.environ["JAX_PROCESS_ID"]),
            )
        except KeyError as error:
            raise ValueError(
                f"Environment: JAX_NUM_PROCESSES={os.environ['JAX_NUM_PROCESSES']} needs"
                f" {error.args[0]} too; set all three on every process."
            ) from error
    elif os.environ.get("MMJAX_DISTRIBUTED") == "1":
        jax.distributed.initialize()


def is_main() -> bool:
    """Whether this is the process that writes; asks the environment, not the backend."""
    if "JAX_PROCESS_ID" in os.environ:
        return os.environ["JAX_PROCESS_ID"] == "0"
    return os.environ.get("MMJAX_DISTRIBUTED") != "1" or jax.process_index() == 0


_numbers = itertools.count()  # a barrier of the coordinator passes once


def barrier(name: str) -> None:
    """Until all processes have come here; nothing for a single process.

    The coordinator holds it, no collective: those of CPU give up after 30 s, and one process may
    compile for minutes longer than another. A process that dies ends it for all.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        from orbax.checkpoint import multihost

        sync = multihost.get_barrier_sync_fn()
        sync(key=f"mmjax {next(_numbers)} {name}", timeout_ms=24 * 60 * 60 * 1000)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; all must ask at the same step."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
