"""`mmjax launch local`: processes on this machine, joined by jax.distributed, started again.

Also what runs on each machine of every other target, so that there is one policy of restarts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from mmjax.config.error import ConfigError
from mmjax.launch.node import AT_ONCE, LATER, Ended, Node, Stop, run
from mmjax.launch.progress import Progress
from mmjax.plan import topology as topology_lib
from mmjax.processes import children

__all__ = ["Node", "local"]

TRAIN = "from mmjax import cli; sys.exit(cli.main())"

FIRST_WAIT, LONGEST_WAIT = 5.0, 300.0  # seconds before a start after 74; doubled each time
APART = 7.0  # seconds until the processes of every other machine have ended too


def local(
    config: str,
    workdir: str,
    *,
    processes: int = 1,
    devices_per_process: int = 0,
    overrides: Sequence[str] = (),
    restarts: int = 10,
    retries: int = 3,
    nodes: int = 1,
    node_rank: int = 0,
    coordinator: str = "",
    topology: str = "",
    command: Sequence[str] = (),
) -> int:
    """Trains CONFIG in `processes` processes of this machine; returns the exit code.

    Exit codes 69 and 75 are started again at once, 74 after a wait that doubles, others never; a
    process that a signal ended counts as 69. SIGINT and SIGTERM go to all processes, and then
    nothing is started again.

    Args:
      devices_per_process: simulated ones on CPU, GPUs of its own otherwise; 0 = as they come.
      overrides: further arguments of `mmjax train`.
      restarts: at most so many. retries: starts in a row without a new checkpoint or a later
        logged step in the workdir after which it ends, and shows the first error.
      nodes, node_rank, coordinator: machines of the run, which this is, HOST:PORT of the first.
      topology: what they are, for the flags of XLA.
      command: instead of `mmjax train CONFIG ...`.

    Raises ConfigError for sizes that make no sense.
    """
    counts = (("-n", processes, 1), ("--restarts", restarts, 0), ("--retries", retries, 1))
    for name, value, least in (*counts, ("--nodes", nodes, 1)):
        if value < least:
            raise ConfigError(f"{name} {value}: use {least} or more.")
    if devices_per_process < 0:
        raise ConfigError(f"--devices-per-process {devices_per_process}: use 1 or more.")
    _check_place(nodes, node_rank, coordinator)
    if topology:
        topology_lib.parse(topology)
    node = Node(
        processes=processes,
        devices=devices_per_process,
        nodes=nodes,
        rank=node_rank,
        coordinator=coordinator,
        topology=topology,
    )
    train = children.command(TRAIN, "train", config, "--workdir", workdir, *overrides)
    return _until_done(list(command) or train, node, Progress(workdir), restarts, retries)


def _check_place(nodes: int, rank: int, coordinator: str) -> None:
    if not 0 <= rank < nodes:
        raise ConfigError(f"--node-rank {rank}: of {nodes} machines use 0 to {nodes - 1}.")
    host, colon, port = coordinator.rpartition(":")
    if coordinator and not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"--coordinator {coordinator}: write HOST:PORT, such as 10.0.0.2:8476.")
    if nodes > 1 and not coordinator and "JAX_COORDINATOR_ADDRESS" not in os.environ:
        raise ConfigError(
            f"--nodes {nodes} needs --coordinator HOST:PORT, an address of the first machine that"
            " all others reach."
        )


def _until_done(
    command: list[str], node: Node, progress: Progress, restarts: int, retries: int
) -> int:
    """Starts until a code that stays, a signal, or too many starts."""
    stop, wait, barren = Stop(), FIRST_WAIT, []
    with stop.listening():
        for start in range(restarts + 1):
            ended = run(command, node, stop)
            if stop.number or ended.code not in (*AT_ONCE, LATER) or start == restarts:
                break
            if progress.moved():
                wait, barren = FIRST_WAIT, []
            else:
                barren.append(ended)
            if len(barren) >= retries:
                _give_up(barren, retries)
                break
            _say(f"exit code {ended.code}: start {start + 2} of at most {restarts + 1}")
            if ended.code == LATER:
                stop.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            elif node.is_one_of_several:  # else the new process meets the old coordinator
                stop.sleep(APART)
            if stop.number:
                break
    return ended.code


def _give_up(barren: list[Ended], retries: int) -> None:
    first = barren[0]
    _say(
        f"{retries} {'starts' if retries > 1 else 'start'} in a row without a new checkpoint or a"
        f" later logged step; the first ended with exit code {first.code}, by process"
        f" {first.process}, which wrote last:"
    )
    for line in first.lines:
        sys.stderr.buffer.write(b"  | " + line + b"\n")
    sys.stderr.buffer.flush()


def _say(text: str) -> None:
    print(f"mmjax launch: {text}", file=sys.stderr, flush=True)
