"""Signals that stop a run, and the lock on its folder."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax.errors import Interrupted, Preempted, StorageError, WorkdirBusy

__all__ = ["Stop", "lock", "stop_on_signals"]


# --------------------------------------------------------------------------- signals


class Stop:
    """Whether a stop was requested, and by which signal."""

    def __init__(self):
        self.signal_name = ""

    @property
    def requested(self) -> bool:
        """True after the first SIGINT or SIGTERM."""
        return bool(self.signal_name)

    def check(self, step: int) -> None:
        """Raises Preempted if a stop was requested; call it after the save of `step`."""
        if self.requested:
            raise Preempted(f"{self.signal_name}: saved step {step}; the same command goes on.")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turns the first SIGINT or SIGTERM into `stop.requested`; a second SIGINT interrupts.

    Enter it after `jax.distributed.initialize`, which installs its own SIGTERM handler. Outside of
    the main thread signals are left alone.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        del frame
        if stop.requested and number == signal.SIGINT:
            signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # a third one: no cleanup
            raise Interrupted("interrupted twice")
        if not stop.requested:
            stop.signal_name = signal.Signals(number).name
            text = f"mmjax: {stop.signal_name}: saving after this step, then stopping"
            again = " (again to stop at once)" if number == signal.SIGINT else ""
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}{again}\n".encode())

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


# ------------------------------------------------------------------------------ lock


@contextlib.contextmanager
def lock(workdir: str | os.PathLike[str]) -> Iterator[None]:
    """Holds `WORKDIR/lock` for one run: a kernel lock on a JSON file that names its owner.

    The kernel releases the lock of a dead process. If a worker process outlives its parent, it
    keeps the lock; then the JSON shows that the owner is dead, and the lock is taken over. Paths in
    a bucket cannot be locked and are not guarded.

    Raises WorkdirBusy, naming the holder; StorageError if the path is not a regular file.
    """
    if "://" in os.fspath(workdir):
        yield
        return
    path = Path(workdir) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path)
    try:
        yield
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise
            raise _no_lock(path) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _no_lock(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _steal_from_the_dead(path, descriptor)
            continue
        except OSError as error:  # some cluster file systems have no locks
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            print(f"mmjax: no lock on {path.parent}: {error.strerror}", file=sys.stderr)
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        if _is_same_file(path, descriptor):
            return descriptor
        os.close(descriptor)  # it was taken over between open and flock


def _no_lock(path: Path) -> StorageError:
    return StorageError(f"{str(path)!r}: is no plain file, as the lock of a run is; remove it.")


def _steal_from_the_dead(path: Path, descriptor: int) -> None:
    """Removes the lock file of a dead owner; raises WorkdirBusy for a live one."""
    try:
        holder = _read(descriptor)
        if _is_dead(holder):
            time.sleep(0.2)  # a new owner may not have written its name yet
        if not _is_dead(holder) or _read(descriptor) != holder:
            who = "pid {pid} on {host} since {time}".format(
                **{"pid": "?", "host": "?", "time": "?", **_read(descriptor)}
            )
            raise WorkdirBusy(
                f"Workdir {str(path.parent)!r} is held by {who}; wait for that run, stop it, or use"
                " another --workdir."
            )
        if _is_same_file(path, descriptor):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> dict[str, Any]:
    try:
        return dict(json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
