"""The lock of a run: one writer for each workdir, on a disk or in a bucket.

On a disk it is a kernel lock on `WORKDIR/lock`. In a bucket it is an object of that name, written
only if it has the generation that its writer expects, and written again every HEARTBEAT seconds.
Whoever finds it unchanged for LEASE seconds of its own monotonic clock takes it over; the clocks of
two hosts are never compared. The former holder learns of it from the generation.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import stat
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmjax import files
from mmjax.errors import StorageError, WorkdirBusy
from mmjax.files import versions

__all__ = ["UNKNOWN", "Held", "holder", "is_dead", "lock"]

HEARTBEAT = 10.0  # seconds between writes of the lock of a bucket
LEASE = 30.0  # seconds without one after which it is taken over
MAX_LOCK = 1 << 16  # bytes
UNKNOWN = {"pid": "?", "host": "?", "time": "?"}


class Held:
    """A lock that is held.

    Fields:
      fence: how often it was taken over from a holder that had not let go, plus one; 0 on a disk.
    """

    fence = 0

    def check(self) -> None:
        """Asks whether the lock is still held; raises WorkdirBusy if another run has taken it over.

        One round trip in a bucket. On a disk the kernel keeps it.
        """

    def raise_if_lost(self) -> None:
        """As `check`, by what is known already, without a round trip."""


@contextlib.contextmanager
def lock(workdir: str | os.PathLike[str]) -> Iterator[Held]:
    """Holds `WORKDIR/lock` for one run; yields a handle to ask whether it is still held.

    On a disk the kernel releases the lock of a dead process. If a worker process outlives its
    parent, it keeps the lock; then the JSON shows that the owner is dead, and it is taken over.
    Services without preconditions (anything but gs:// in a bucket) are not guarded, which is said.

    Raises WorkdirBusy, naming the holder; StorageError if the lock cannot be written.
    """
    if files.is_remote(workdir):
        if not versions.supports(workdir):
            print(f"mmjax: no lock on {workdir}: only gs:// has what it takes", file=sys.stderr)
            yield Held()
            return
        with _Lease(f"{os.fspath(workdir).rstrip('/')}/lock") as held:
            yield held
        return
    path = Path(workdir) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path)
    try:
        yield Held()
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def holder(workdir: Any) -> dict[str, Any]:
    """Who holds a workdir, by what its lock says (pid, host, time); empty = nobody.

    Whether it is alive is known on its own host alone (`is_dead`).
    """
    try:
        content = files.read_bytes(files.given(workdir) / "lock", MAX_LOCK)
    except files.DamagedFile:
        return {}
    return _holder(content) if content.strip() else {}


def _owner() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "time": now}


def _busy(workdir: Any, holder: dict[str, Any]) -> WorkdirBusy:
    who = "pid {pid} on {host} since {time}".format(**{**UNKNOWN, **holder})
    return WorkdirBusy(
        f"Workdir {os.fspath(workdir)!r} is held by {who}; wait for that run, stop it, or use"
        " another --workdir."
    )


def is_dead(holder: dict[str, Any]) -> bool:
    """Whether the process that a lock names ran on this host, and is gone."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    if holder.get("machine", _machine()) != _machine():  # pids of another boot or container
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _machine() -> str:
    """The boot and the namespace in which a pid means a process; empty where they are not known."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    return ""


# -------------------------------------------------------------------------- in a bucket


class _Lease(Held):
    """The lock of a workdir in a bucket; a thread renews it."""

    def __init__(self, path: str):
        self._path, self._workdir = path, path.rpartition("/")[0]
        self._object = versions.Versioned(path)
        self._beat = versions.Versioned(path, patience=0.0)  # the thread tries again by itself
        self._document = {**_owner(), "machine": _machine(), "owner": uuid.uuid4().hex, "beat": 0}
        self._generation, self._renewed = 0, 0.0
        self._guard, self._ended = threading.Lock(), threading.Event()
        self._lost: WorkdirBusy | None = None
        self._thread = threading.Thread(target=self._renew_for_ever, daemon=True, name="lock")

    def __enter__(self) -> _Lease:
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()
        # A lock that cannot be deleted now is taken over later; the run itself is done.
        with contextlib.suppress(versions.Changed, StorageError):
            self._object.delete(self._generation)

    # ---- taking it

    def _take(self) -> None:
        while True:
            content, there = self._object.read()
            holder = _holder(content)
            if there and not is_dead(holder) and not self._is_abandoned(there, holder):
                continue
            self.fence = int(holder.get("fence", 0)) + 1
            self._document["fence"] = self.fence
            began = time.monotonic()
            with contextlib.suppress(versions.Changed):  # another one was quicker
                self._generation = self._object.write(self._content(), there)
                self._renewed = began
                return

    def _is_abandoned(self, there: int, holder: dict[str, Any]) -> bool:
        """Watches a lock for a lease; False if it is gone meanwhile, WorkdirBusy if it is alive."""
        who = "pid {pid} on {host}".format(**{**UNKNOWN, **holder})
        print(
            f"mmjax: {self._path} is of {who}; it is taken over if it stays silent for"
            f" {LEASE:.0f} s",
            file=sys.stderr,
            flush=True,
        )
        end = time.monotonic() + LEASE
        while time.monotonic() < end:
            time.sleep(min(LEASE / 10, max(end - time.monotonic(), 0)))
            now = self._object.generation()
            if not now:
                return False
            if now != there:
                raise _busy(self._workdir, _holder(self._object.read()[0]) or holder)
        return True

    def _content(self) -> bytes:
        return json.dumps(self._document, sort_keys=True).encode()

    # ---- keeping it

    def _renew_for_ever(self) -> None:
        pause = HEARTBEAT
        while not self._ended.wait(pause):
            try:
                self._renew(self._beat)
                pause = HEARTBEAT
            except WorkdirBusy:
                return
            except StorageError:  # throttled, or out of reach for now
                pause = min(HEARTBEAT, LEASE / 15)

    def _renew(self, target: versions.Versioned) -> None:
        """Writes the lock again; raises WorkdirBusy if it is no longer this run's."""
        with self._guard:
            self.raise_if_lost()
            began = time.monotonic()
            self._document["beat"] += 1
            try:
                self._generation = target.write(self._content(), self._generation)
            except versions.Changed:
                self._look_again()
            self._renewed = began

    def _look_again(self) -> None:
        """Another generation: of a write of ours whose answer was lost, or of a new holder."""
        content, generation = self._object.read()
        holder = _holder(content)
        if holder.get("owner") == self._document["owner"]:
            self._generation = generation
            return
        who = "pid {pid} on {host}".format(**{**UNKNOWN, **holder}) if holder else "another run"
        self._lost = WorkdirBusy(
            f"Workdir {self._workdir!r}: was taken over by {who} while this run was silent for more"
            f" than {LEASE:.0f} s; nothing more is written. That run goes on from the last save."
        )
        raise self._lost

    def raise_if_lost(self) -> None:
        if self._lost is not None:
            raise self._lost

    def check(self) -> None:
        """Raises WorkdirBusy if another run has taken the lock over; one round trip.

        A run that was silent for longer than the lease, and was not taken over, holds it still: it
        renews the lock before it goes on, so that nobody takes it over meanwhile.
        """
        self.raise_if_lost()
        if time.monotonic() - self._renewed > LEASE:
            self._renew(self._object)
            return
        with self._guard:
            if self._object.generation() != self._generation:
                self._look_again()


def _holder(content: bytes) -> dict[str, Any]:
    try:
        holder = dict(json.loads(content))
        return {**holder, "fence": int(holder.get("fence", 0))}
    except (ValueError, TypeError):
        return {}


# ---------------------------------------------------------------------------- on a disk


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
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_owner()).encode(), 0)
        if _is_same_file(path, descriptor):
            return descriptor
        os.close(descriptor)  # it was taken over between open and flock


def _no_lock(path: Path) -> StorageError:
    return StorageError(f"{str(path)!r}: is no plain file, as the lock of a run is; remove it.")


def _steal_from_the_dead(path: Path, descriptor: int) -> None:
    """Removes the lock file of a dead owner; raises WorkdirBusy for a live one."""
    try:
        holder = _read(descriptor)
        if is_dead(holder):
            time.sleep(0.2)  # a new owner may not have written its name yet
        if not is_dead(holder) or _read(descriptor) != holder:
            raise _busy(path.parent, _read(descriptor))
        if _is_same_file(path, descriptor):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> dict[str, Any]:
    try:
        return dict(json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return {}


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
