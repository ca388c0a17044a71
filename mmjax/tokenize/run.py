"""tokenize(experiment, out): all units of a job, on this machine, and then the manifest.

A start does what is not there yet, so the same command goes on after any interruption.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from concurrent.futures import process
from multiprocessing import connection
from pathlib import Path
from typing import Any

from mmjax import console, errors, files
from mmjax.config.error import ConfigError
from mmjax.experiment import Experiment
from mmjax.run import lock
from mmjax.tokenize import job as job_lib
from mmjax.tokenize import shard, whole
from mmjax.tokenize.job import Job, Unit

ATTEMPTS = 2  # at a unit, in one start; what fails twice is most likely to fail always
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def tokenize(experiment: Experiment, out: Any, *, workers: int = 1, **how: Any) -> dict[str, Any]:
    """Tokenizes the source of a config into `out`, or goes on there; returns the manifest.

    Args:
      workers: processes; 1 = this one. how: of `job.make`: task, splits, add, crops,
        shard_examples.

    Raises:
      ConfigError: a config that cannot be tokenized, or a folder of another job.
      CheckFailed: shards have failed; the others are done.
      BadDataError: too many records were rejected.
      StorageError: writing failed. WorkdirBusy: another command writes here.
    """
    if workers < 1:
        raise ConfigError(f"--workers {workers} must be 1 or more.")
    folder = files.given(out)
    with lock.lock(os.fspath(folder)) as held:
        made = begin(experiment, folder, **how)
        units = made.units()
        todo = [unit for unit in units if shard.known(made, unit) is None]
        done = len(units) - len(todo)
        console.say(f"{made.part}: {len(units)} shards of {', '.join(made.ends)}; {done} are there")
        bar = console.Progress(len(units), done, True, name=made.part)
        doing = _here(made, todo) if workers == 1 else _by_processes(made, todo, workers)
        try:
            for one, error in doing:
                held.raise_if_lost()
                done += error is None
                bar.advance(done)
                if error is not None:
                    console.say(f"{one.split}/{one.number:05d} has failed: {error}")
        finally:
            bar.close()
        return whole.finalize(folder, made.experiment.guards.allowed_bad)


def begin(experiment: Experiment, folder: Any, **how: Any) -> Job:
    """The job, with its folder opened (see `job.make`)."""
    made = job_lib.make(experiment, folder, **how)
    modalities = made.experiment.modalities
    shard.check_modalities({name: modalities[name] for name in made.streams})
    if made.part != job_lib.FIRST:
        _check_first(made)
    made.open_folder()
    if not files.is_remote(folder):  # of processes that were killed as they wrote
        for left in Path(made.folder()).rglob(f"*{files.PARTIAL}"):
            left.unlink(missing_ok=True)
    return made


def _check_first(made: Job) -> None:
    """Raises ConfigError unless a part adds to a set of the same records."""
    path = made.folder().parent / job_lib.FIRST / job_lib.JOB
    if not files.exists(path):
        raise ConfigError(
            f"--out {made.out}: holds no tokens yet; run mmjax tokenize without --add first."
        )
    first, about = files.read_json(path), made.about()
    for name in ("source", "splits"):
        if first[name] != about[name]:
            raise ConfigError(
                f"--add: {name} of {made.out} is another than that of the config; add to a set of"
                " the same records, with the same --splits and --shard-examples."
            )
    both = [name for name in made.streams if name in first["streams"]]
    if both:
        raise ConfigError(f"--add {both[0]}: {made.out} holds it already.")


def unit(made: Job, one: Unit) -> str:
    """Does a unit, with a second attempt; returns the error of the last, or "".

    Raises OSError or StorageError if the disk is full or fails, after which no unit can be done.
    """
    path = shard.path_of(made, one)
    note = shard.note_of(path)
    for _ in range(ATTEMPTS):
        try:
            shard.make(made, one)
            note.unlink(missing_ok=True)
            return ""
        except OSError as error:
            if error.errno in FULL:
                raise
            last = _line(error)
        except (MemoryError, errors.RunError):
            raise
        except Exception as error:
            last = _line(error)
        _note(note, last)
    return last


def _line(error: Exception) -> str:
    return console.inline(f"{type(error).__name__}: {error}", 400)


def _note(path: Any, error: str) -> None:
    attempts = 0
    if files.exists(path):
        with contextlib.suppress(files.DamagedFile, KeyError, TypeError):
            attempts = files.read_json(path)["attempts"]
    files.write_json(path, {"attempts": attempts + 1, "error": error})


def _here(made: Job, units: Sequence[Unit]) -> Iterator[tuple[Unit, str | None]]:
    for one in units:
        yield one, unit(made, one) or None


# ------------------------------------------------------------------------------ processes

_made: Job | None = None  # of a worker process


def _by_processes(
    made: Job, units: Sequence[Unit], workers: int
) -> Iterator[tuple[Unit, str | None]]:
    """Units by several processes, as they end."""
    import cloudpickle

    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(
        min(workers, max(len(units), 1)), context, _begin_worker, (cloudpickle.dumps(made),)
    ) as pool:
        waiting = {pool.submit(_in_worker, one): one for one in units}
        try:
            for future in futures.as_completed(waiting):
                yield waiting[future], future.result() or None
        except process.BrokenProcessPool as error:
            raise errors.HostLost(
                "A worker process was killed, most likely for want of memory; run the same command"
                " again, with fewer --workers."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_worker(content: bytes) -> None:
    import cloudpickle

    global _made
    parent = multiprocessing.parent_process()
    if parent is not None:  # a worker whose parent was killed must not go on
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _made = cloudpickle.loads(content)


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _in_worker(one: Unit) -> str:
    assert _made is not None
    return unit(_made, one)
