"""Waiting until all processes of a run are there, before jax joins them.

jax aborts a process whose peers do not come, and does not say which. So process 0 first listens at
the address of the coordinator, where each of the others says its number, and leaves the port to
jax once it has heard all of them. At the end of the time everybody learns who is absent. The
connections stay: the end of a process closes its own, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
import time
from typing import Any

from mmjax.errors import ConfigError, HostLost

__all__ = ["is_open", "wait"]

POLL = 0.2  # seconds
LONGEST = 4096  # bytes of a line
TALK = 5.0  # seconds for a peer to say its line
NAMED = 8  # absent processes that a message names


def wait(address: str, count: int, process: int, seconds: float) -> dict[int, socket.socket]:
    """Returns on all processes once the last has come.

    Args:
      address: HOST:PORT of process 0. seconds: how long absent ones are awaited.

    Returns:
      Connections to keep, by process: on process 0 to all others, and elsewhere to process 0.

    Raises:
      HostLost: some did not come; names them, and the command that starts one.
      ConfigError: a process was started for another number of processes, or twice.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(
            f"JAX_COORDINATOR_ADDRESS={address} must be HOST:PORT of process 0, such as"
            " 10.0.0.2:8476."
        )
    if not 0 <= process < count:
        raise ConfigError(
            f"JAX_PROCESS_ID={process}: processes are numbered from 0 to {count - 1} with"
            f" JAX_NUM_PROCESSES={count}."
        )
    end = time.monotonic() + seconds
    me = {"process": process, "of": count, "host": socket.gethostname(), "pid": os.getpid()}
    if process == 0:
        return _Listener(address, int(port), me, seconds).run(end)
    return {0: _come(address, host.strip("[]"), int(port), me, seconds, end)}


class _Listener:
    """Process 0: hears the others, and answers all at once."""

    def __init__(self, address: str, port: int, me: dict[str, Any], seconds: float):
        self._address, self._port, self._seconds, self._me = address, port, seconds, me
        self._there: dict[int, tuple[socket.socket, dict[str, Any]]] = {}

    def run(self, end: float) -> dict[int, socket.socket]:
        try:
            with _server(self._port, end) as server:
                server.settimeout(POLL)
                while not self._all_there():
                    if time.monotonic() > end:
                        self._fail(HostLost, self._absent())
                    with contextlib.suppress(TimeoutError):
                        self._hear(server.accept()[0])
            self._answer({"go": True})
        except BaseException:
            for connection, _ in self._there.values():
                connection.close()
            raise
        return {process: connection for process, (connection, _) in self._there.items()}

    def _all_there(self) -> bool:
        """Whether every process has come, and none has died since."""
        if len(self._there) < self._me["of"] - 1:
            return False
        for process, (connection, _) in list(self._there.items()):
            if not is_open(connection):  # awaited again
                connection.close()
                del self._there[process]
        return len(self._there) == self._me["of"] - 1

    def _hear(self, connection: socket.socket) -> None:
        peer = _line(connection)
        if not peer or type(peer.get("process")) is not int or type(peer.get("of")) is not int:
            connection.close()  # no process of mmjax
            return
        process, count = peer["process"], self._me["of"]
        wrong = ""
        if peer["of"] != count or not 0 < process < count:
            wrong = (
                f"process {process} on {peer.get('host')} was started for {peer['of']} processes,"
                f" and process 0 for {count}; give all of them the same JAX_NUM_PROCESSES, and each"
                " a JAX_PROCESS_ID of its own."
            )
        elif process in self._there and is_open(self._there[process][0]):
            first = self._there[process][1]
            wrong = (
                f"process {process} was started twice: on {first.get('host')} (pid"
                f" {first.get('pid')}) and on {peer.get('host')} (pid {peer.get('pid')}); give each"
                " process a JAX_PROCESS_ID of its own."
            )
        if wrong:
            _say(connection, {"wrong": wrong})
            connection.close()
            self._fail(ConfigError, wrong)
        self._there[process] = (connection, peer)

    def _absent(self) -> str:
        absent = [i for i in range(1, self._me["of"]) if i not in self._there]
        return _missing(self._address, self._me["of"], absent, self._seconds)

    def _fail(self, kind: type[Exception], text: str) -> None:
        self._answer({"lost" if kind is HostLost else "wrong": text})
        raise kind(text)

    def _answer(self, answer: dict[str, Any]) -> None:
        for connection, _ in self._there.values():
            _say(connection, answer)


def _come(
    address: str, host: str, port: int, me: dict[str, Any], seconds: float, end: float
) -> socket.socket:
    """Another process: says its number until process 0 has heard it, and waits for the answer."""
    while time.monotonic() < end + TALK:  # process 0 may have begun a little later
        with contextlib.suppress(OSError):
            talk = socket.create_connection((host, port), TALK)
            _say(talk, me)
            answer = _line(talk, max(end + TALK - time.monotonic(), POLL))
            if "go" in answer:
                return talk
            talk.close()
            if answer:
                kind = HostLost if "lost" in answer else ConfigError
                raise kind(str(answer.get("lost") or answer.get("wrong")))
        time.sleep(POLL)
    raise HostLost(_missing(address, me["of"], [0], seconds))


def _server(port: int, end: float) -> socket.socket:
    """Listens at all addresses of this host, as the coordinator of jax does after it."""
    while True:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
                )
            return socket.create_server(("", port), backlog=1024)
        except OSError as error:  # a start before this one may not have let go of it yet
            if time.monotonic() > end:
                raise HostLost(
                    f"port {port} of JAX_COORDINATOR_ADDRESS is in use on this host"
                    f" ({error.strerror}); stop the process that holds it, or use another port."
                ) from error
            time.sleep(POLL)


def _missing(address: str, count: int, absent: list[int], seconds: float) -> str:
    named = ", ".join(map(str, absent[:NAMED]))
    more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
    first = f"JAX_COORDINATOR_ADDRESS={address} JAX_NUM_PROCESSES={count}"
    start = f"{first} JAX_PROCESS_ID={absent[0]} {_command()}"
    what = "process" if len(absent) == 1 else "processes"
    return (
        f"{what} {named}{more} of {count} did not come to {address} within {seconds:g} s; start"
        f" each with its number, as in\n  {start}\nor, if they run, let their hosts reach that"
        " address."
    )


def _command() -> str:
    """The command of this process, as one would type it."""
    name, *rest = sys.argv or [""]
    is_ours = name == "-c" or os.path.basename(name) in ("mmjax", "__main__.py")
    return shlex.join(["mmjax", *rest] if is_ours else ["python", name, *rest])


def _say(connection: socket.socket, value: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # it has gone; then it will be absent
        connection.sendall(json.dumps(value).encode() + b"\n")


def _line(connection: socket.socket, seconds: float = TALK) -> dict[str, Any]:
    """The object that the other side says; empty if it says none."""
    content, end = b"", time.monotonic() + seconds
    try:
        while not content.endswith(b"\n") and len(content) < LONGEST:
            connection.settimeout(max(end - time.monotonic(), 0.01))
            part = connection.recv(LONGEST)
            if not part:
                return {}
            content += part
        value = json.loads(content)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def is_open(connection: socket.socket) -> bool:
    """Whether the other side is still there; it says nothing after its first line."""
    try:
        connection.setblocking(False)
        return bool(connection.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.settimeout(TALK)
