"""Several processes: one call before anything touches a device.

`JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` describe plain hosts; on Cloud
TPU, Slurm and others jax finds them itself when `MMJAX_DISTRIBUTED=1`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Any, Protocol

from etils import epy

from mmjax.parallel import rendezvous

with epy.lazy_imports():
    import jax

START_SECONDS = "MMJAX_START_SECONDS"  # environment variable: how long absent processes are awaited
FOREVER = 24 * 60 * 60.0  # seconds; a process that dies ends the wait of all (`run.watch`)


def initialize() -> None:
    """Joins the other processes, once; nothing for a single process.

    Raises:
      HostLost: some processes did not come within 120 s; names them.
      ConfigError: processes were started for runs of different sizes, or one of them twice.
      ValueError: the environment describes a part of the run only.
    """
    if jax.distributed.is_initialized():
        return
    given = _given()
    if given is None:
        return
    address, count, process, local_ids = given
    seconds = _seconds()
    if count > 1:
        _connections.update(rendezvous.wait(address, count, process, seconds))
    jax.distributed.initialize(
        address, count, process, local_ids, initialization_timeout=round(seconds)
    )


_connections: dict[int, Any] = {}  # to other processes, by number, since all have met


def gone() -> set[int]:
    """Those of the connected processes that have ended: on process 0 of all, elsewhere of it."""
    return {p for p, connection in _connections.items() if not rendezvous.is_open(connection)}


def _given() -> tuple[str, int, int, Any] | None:
    """Address of the coordinator, number of processes, own number, and own devices (None = all)."""
    if "JAX_NUM_PROCESSES" in os.environ:
        try:
            return (
                os.environ["JAX_COORDINATOR_ADDRESS"],
                int(os.environ["JAX_NUM_PROCESSES"]),
                int(os.environ["JAX_PROCESS_ID"]),
                None,
            )
        except KeyError as error:
            raise ValueError(
                f"Environment: JAX_NUM_PROCESSES={os.environ['JAX_NUM_PROCESSES']} needs"
                f" {error.args[0]} too; set all three on every process."
            ) from error
    if os.environ.get("MMJAX_DISTRIBUTED") != "1":
        return None
    from jax._src import clusters  # it has no public name

    found: Any = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, round(_seconds())
    )
    if None in found[:3]:
        raise ValueError(
            "Environment: MMJAX_DISTRIBUTED=1, but jax knows no cluster here; set"
            " JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID on every process."
        )
    return found


def _seconds() -> float:
    text = os.environ.get(START_SECONDS, "120")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= FOREVER:
        raise ValueError(f"Environment: {START_SECONDS}={text} must be a number of seconds from 1.")
    return seconds


def is_main() -> bool:
    """Whether this is the process that writes; before `initialize`, what the environment says."""
    if jax.distributed.is_initialized():
        return process() == 0
    return os.environ.get("JAX_PROCESS_ID", "0") == "0"


def count() -> int:
    """Number of processes that have joined; does not start a backend, unlike that of jax."""
    return _joined().num_processes if jax.distributed.is_initialized() else 1


def process() -> int:
    """The number of this process; does not start a backend."""
    return _joined().process_id if jax.distributed.is_initialized() else 0


def _joined() -> Any:
    from jax._src import distributed  # its state has no public name

    return distributed.global_state


# --------------------------------------------------------------------------- the store


class Store(Protocol):
    """Texts by key that all processes of a run share; each call is one round trip."""

    def put(self, key: str, value: str) -> None:
        """Writes or replaces a text."""

    def get(self, key: str, seconds: float) -> str:
        """Waits for a text. Raises TimeoutError when there is none after so many seconds."""
        ...

    def below(self, folder: str) -> dict[str, str]:
        """Texts whose keys begin with `folder/`, by the rest of the key."""
        ...

    def meet(self, name: str, seconds: float) -> None:
        """Until all processes have come here. Raises TimeoutError."""


class Coordinator:
    """The store that jax's coordinator keeps, in process 0."""

    def __init__(self):
        self._client: Any = _joined().client

    def put(self, key: str, value: str) -> None:
        """Writes or replaces a text."""
        self._client.key_value_set(f"mmjax/{key}", value, allow_overwrite=True)

    def get(self, key: str, seconds: float) -> str:
        """Waits for a text. Raises TimeoutError."""
        with _timeouts(key):
            return self._client.blocking_key_value_get(f"mmjax/{key}", round(1000 * seconds))

    def below(self, folder: str) -> dict[str, str]:
        """Texts whose keys begin with `folder/`, by the rest of the key."""
        start = f"mmjax/{folder}/"
        there = self._client.key_value_dir_get(start)
        return {key.removeprefix(start): value for key, value in there}

    def meet(self, name: str, seconds: float) -> None:
        """Until all processes have come here. Raises TimeoutError."""
        with _timeouts(name):
            self._client.wait_at_barrier(f"mmjax/{name}", round(1000 * seconds))


@contextlib.contextmanager
def _timeouts(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of jaxlib, whose errors have no class for it
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise TimeoutError(f"nothing came to {name!r}") from error


def store() -> Coordinator | None:
    """What the processes of this run share; None for a single process."""
    return Coordinator() if count() > 1 else None


_numbers = itertools.count()  # a barrier of the coordinator passes once


def fresh(name: str) -> str:
    """The name with a number that no earlier use in this process has; processes that call in the
    same order get the same ones."""
    return f"{next(_numbers)}/{name}"


# --------------------------------------------------------------------------- what all must call


def barrier(name: str) -> None:
    """Until all processes have come here; nothing for a single process.

    The coordinator holds it, no collective: those of CPU give up after 30 s, and one process may
    compile for minutes longer than another. A process that dies ends it for all.
    """
    meet(fresh(name))


def meet(name: str) -> None:
    """`barrier` under one name of `fresh`, for threads beside the main one."""
    shared = store()
    if shared is not None:
        shared.meet(name, FOREVER)


def gathered(name: str, text: str) -> list[str]:
    """A text of each process, in their order; on the main process alone, elsewhere empty. All must
    call it, with one name of `fresh`."""
    shared = store()
    if shared is None:
        return [text]
    shared.put(f"{name}/{process()}", text)
    shared.meet(name, FOREVER)
    if not is_main():
        return []
    there = shared.below(name)
    return [there[str(i)] for i in range(count())]


def of_main(text: str) -> str:
    """A text of the main process, on all of them; all must call it at the same point."""
    shared, name = store(), fresh("of main")
    if shared is None:
        return text
    if is_main():
        shared.put(name, text)
        return text
    return shared.get(name, FOREVER)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; all must ask at the same point."""
    if count() == 1:
        return flag
    flags = gathered(fresh("any"), "1" if flag else "")
    return bool(of_main("1" if any(flags) else ""))
