"""Metrics: averages between logs, `metrics.jsonl` or its parts, a short summary for the console."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import defaultdict
from typing import Any

import numpy as np
from etils import epath

from mmjax import files
from mmjax.console import NOTEBOOK, Progress, say  # noqa: F401  (their old place)
from mmjax.files import bucket
from mmjax.run import parts, trackers

_log = logging.getLogger("mmjax")
MAX_BYTES = 1 << 32  # largest metrics.jsonl that is read


class Window:
    """Means of metrics since the last log, by name."""

    def __init__(self):
        self._sum: dict[str, float] = defaultdict(float)
        self._count: dict[str, int] = defaultdict(int)

    def add(self, metrics: dict[str, Any], prefix: str = "") -> None:
        """Adds scalars."""
        for name, value in metrics.items():
            self._sum[prefix + name] += float(value)
            self._count[prefix + name] += 1

    def count(self, metrics: dict[str, Any], prefix: str = "") -> None:
        """Adds values that are logged as totals, such as bad records."""
        for name, value in metrics.items():
            self._sum[prefix + name] += float(value)
            self._count[prefix + name] = 1

    def take(self) -> dict[str, float]:
        """Returns means, and totals of counts, by name; then resets."""
        out = {name: self._sum[name] / self._count[name] for name in self._sum}
        self.__init__()
        return out


class Meter:
    """Metrics and speed of the steps between two logs.

    Fields:
      waited: seconds for batches since the last log.

    Args:
      peak_flops: of a device; 0 = it is not known, and neither is the share of it that is used.
      host_share: share of a batch that is counted here (`loader.host_share`).
    """

    def __init__(self, num_devices: int, peak_flops: float = 0.0, host_share: float = 1.0):
        self._window, self._num_devices, self._peak = Window(), num_devices, peak_flops
        self._host_share = host_share
        self._tokens, self._flops, self.waited = 0.0, 0.0, 0.0
        self._mark = (0.0, 0)  # time and step of the last log

    def start(self, step: int) -> None:
        """The steps from here on are timed."""
        self._mark = (time.perf_counter(), step)

    def add(
        self, task: str, out: dict[str, Any], counts: dict[str, float], flops: float = 0.0
    ) -> None:
        """Metrics of a step, the counts of its batch, and the FLOPs of its model."""
        self._window.add(out, f"train/{task}/")
        self._window.count(counts, f"data/{task}/")
        bad = {name: value for name, value in counts.items() if name.startswith("bad/")}
        self._window.count(bad, "data/")
        self._tokens += counts.get("tokens", 0.0)
        self._flops += flops
        if math.isfinite(out["loss"]):
            self._window.add({"train/loss": out["loss"]})

    def row(self, step: int) -> dict[str, float]:
        """All of it by name; the next steps begin a new row."""
        now, (then, first) = time.perf_counter(), self._mark
        row, elapsed = self._window.take(), max(now - then, 1e-9)
        row["throughput/steps_per_second"] = (step - first) / elapsed
        everywhere = self._tokens / self._host_share / self._num_devices
        row["throughput/tokens_per_second_per_device"] = everywhere / elapsed
        if self._peak and self._flops:
            used = self._flops / elapsed
            row["throughput/mfu"] = used / (self._peak * self._num_devices)
        row["data/wait_fraction"] = self.waited / elapsed
        self._mark, self.waited = (now, step), 0.0
        self._tokens, self._flops = 0.0, 0.0
        return row


class Writer:
    """Appends to `metrics.jsonl`, and if asked to TensorBoard and a tracker; on the main host only.

    In a bucket, which has no append, it writes `metrics/`, in a thread (see `mmjax.run.parts`).
    """

    def __init__(
        self,
        workdir: epath.Path,
        active: bool,
        tensorboard: bool = False,
        tracker: trackers.Tracker | None = None,
    ):
        is_remote = files.is_remote(workdir)
        self._tracker = tracker if active else None
        self._parts = parts.Parts(workdir) if active and is_remote else None
        self._path = workdir / "metrics.jsonl" if active and not is_remote else None
        self._board = None
        if active and tensorboard:
            import tensorboardX

            self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))

    def rewind(self, step: int) -> None:
        """Drops rows after a step, as the steps since the last save run again.

        Unreadable lines, and the rows of a run that starts from scratch, are kept in `quarantine/`.
        """
        if self._parts is not None:
            self._parts.rewind(step)
        if self._path is None or not files.exists(self._path):
            return
        try:
            rows, bad = read_rows(self._path)
        except files.DamagedFile as error:
            files.quarantine(self._path, self._path.parent, str(error))
            return
        if step == 0 and rows:
            last = max(row["step"] for row in rows)
            why = f"it reaches step {last} and no checkpoint was saved, so the run starts anew"
            files.quarantine(self._path, self._path.parent, why)
            return
        if bad:
            why = f"{len(bad)} of its lines cannot be read and are left out"
            files.quarantine(self._path, self._path.parent, why)
        kept = [row for row in rows if row["step"] <= step]
        if bad or len(kept) < len(rows):
            with files.replacing(self._path) as partial:
                partial.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of a step. NaN becomes null, as JSON has no NaN."""
        if self._path is None and self._parts is None:
            return
        row = {"step": step, "time": round(time.time(), 3)}
        row |= {k: (float(f"{v:.6g}") if np.isfinite(v) else None) for k, v in metrics.items()}
        if self._parts is not None:
            self._parts.add(json.dumps(row) + "\n")
        elif self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.write(step, {k: v for k, v in metrics.items() if np.isfinite(v)})

    def flush(self) -> None:
        """Waits until all rows are where the next start finds them."""
        if self._parts is not None:
            self._parts.flush()

    def close(self) -> None:
        """Closes the files."""
        if self._parts is not None:
            self._parts.close()
        if self._board is not None:
            self._board.close()
        if self._tracker is not None:
            self._tracker.close()


def read(workdir: Any) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Rows of a run and its invalid lines, from `metrics.jsonl` or the parts of a bucket.

    Raises:
      DamagedFile: there are none, or they cannot be read.
    """
    if not files.is_remote(workdir):
        return read_rows(workdir / "metrics.jsonl")
    there = parts.names(workdir)
    if not there:
        raise files.DamagedFile("it is missing")
    found = bucket.read_all([workdir / parts.FOLDER / name for name in there])
    read_parts = {name.rpartition("/")[2]: _rows(content) for name, content in found.items()}
    for name, (_, lines) in read_parts.items():
        if lines:
            words = f"{len(lines)} lines", "are"
            count, are = words if len(lines) > 1 else ("1 line", "is")
            _log.warning("%s of %s cannot be read and %s left out", count, name, are)
    bad = [line for _, lines in read_parts.values() for line in lines]
    return parts.join({name: rows for name, (rows, _) in read_parts.items()}), bad


def read_rows(path: Any) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Rows of a `metrics.jsonl`, and its invalid lines, such as a truncated last one.

    Raises:
      DamagedFile: the file cannot be read.
    """
    return _rows(files.read_bytes(path, MAX_BYTES))


def _rows(content: bytes) -> tuple[list[dict[str, Any]], list[bytes]]:
    rows, bad = [], []
    for line in content.split(b"\n"):
        try:
            row = files.parse_json(line.decode()) if line.strip() else None
            numbers = (float, int, type(None))
            if row is not None and type(row.get("step")) is not int:
                raise files.DamagedFile("it has no step")
            if row is not None and not all(type(value) in numbers for value in row.values()):
                raise files.DamagedFile("it holds what is no number")
        except ValueError:
            bad.append(line)
        else:
            rows += [] if row is None else [row]
    return rows, bad


def summary(metrics: dict[str, float]) -> str:
    """A line with the most important metrics."""
    words = []
    for name, value in sorted(metrics.items()):
        parts = name.split("/")
        if name == "train/loss" or (len(parts) == 3 and name.endswith("/loss")):
            words.append(f"{parts[-2] if len(parts) == 3 else 'loss'} {value:.3f}")
    speed = metrics.get("throughput/steps_per_second")
    if speed:
        words.append(f"{speed:.2f} steps/s")
    if "data/wait_fraction" in metrics:
        words.append(f"data wait {100 * metrics['data/wait_fraction']:.1f} %")
    return "  ".join(words)
