"""What `mmjax doctor CONFIG` looks at on a host before a run compiles there.

Each check gives a row and none stops the others, so that one start tells all that is wrong.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmjax import files
from mmjax.config.error import ConfigError
from mmjax.experiment import Experiment
from mmjax.plan import topology as topology_lib
from mmjax.plan.topology import Topology
from mmjax.processes import compile_cache

__all__ = ["Row", "preflight", "text"]

ROOM = 2e9  # bytes that a disk of caches should have: compiled programs, indices of data
PLUGINS = {"tpu": ("libtpu",), "gpu": ("jax-cuda13-plugin", "jax-cuda12-plugin")}


class Row(NamedTuple):
    """A check: of what, whether it is well, and what was found."""

    name: str
    ok: bool
    found: str


def preflight(experiment: Experiment, workdir: str, topology: str = "") -> list[Row]:
    """The rows of this host.

    Args:
      topology: of the whole run; "" = devices and their plugin are not looked at.
    """
    where = topology_lib.parse(topology) if topology else None
    rows = [*_versions(where)]
    if where:
        rows.append(_row("devices", lambda: _devices(where)))
    rows.append(_row("workdir", lambda: _writable(workdir)))
    for name, task in experiment.tasks.items():
        look = lambda source=task.source: _records(source, experiment.data.train_split)
        rows.append(_row(f"data {name}", look))
    for name, modality in experiment.modalities.items():
        path = getattr(modality, "path", "")
        if path:
            look = lambda path=path: _tokenizer(path)
            rows.append(_row(f"tokenizer {name}", look))
    rows += [_row("disk", lambda folder=folder: _room(folder)) for folder in _caches()]
    return rows


def text(rows: list[Row]) -> str:
    """The rows as a table."""
    width = max(len(row.name) for row in rows)
    return "\n".join(
        f"{'ok     ' if row.ok else 'PROBLEM'} {row.name:{width}}  {row.found}" for row in rows
    )


def _row(name: str, look: Callable[[], str]) -> Row:
    try:
        return Row(name, True, look())
    except Exception as error:  # of a driver, a client of storage, a source: each is a finding
        words = str(error).strip() or type(error).__name__
        return Row(name, False, " ".join(words.split()))


def _versions(where: Topology | None) -> Iterator[Row]:
    """Python, the packages that mmjax asks for, and what runs on the chips."""
    try:
        meta = importlib.metadata.metadata("mmjax")
        asked = [r for r in importlib.metadata.requires("mmjax") or [] if "extra ==" not in r]
    except importlib.metadata.PackageNotFoundError:
        yield Row("packages", True, "mmjax is not installed but imported: not compared")
        return
    wanted = meta["Requires-Python"]
    yield _within("python", platform.python_version(), wanted)
    odd = []
    for requirement in asked:
        name, rule = re.fullmatch(r"([\w.-]+)(?:\[[^]]*\])?\s*([^;]*).*", requirement).groups()  # pyright: ignore
        row = _within(name, _version(name), rule)
        odd += [] if row.ok else [row]
    jax, jaxlib = _version("jax"), _version("jaxlib")
    yield from odd or [Row("packages", True, f"{len(asked)} as asked for; jax {jax}")]
    same = (jax or "").split(".")[:3] == (jaxlib or "").split(".")[:3]
    yield Row("jaxlib", same, f"{jaxlib}" if same else f"{jaxlib}, and jax is {jax}")
    for platform_name, names in PLUGINS.items():
        if where and where.chip.platform == platform_name:
            there = [f"{name} {_version(name)}" for name in names if _version(name)]
            extra = {"tpu": "tpu", "gpu": "cuda"}[platform_name]
            missing = f"{names[0]} is not installed: pip install 'mmjax[{extra}]'"
            yield Row("plugin", bool(there), ", ".join(there) or missing)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _within(name: str, version: str | None, rule: str) -> Row:
    """Whether a version is in a range such as >=0.10.2,<0.13."""
    if version is None:
        return Row(name, False, f"not installed, asked for is {rule or 'any'}")
    mine = _numbers(version)
    for part in filter(None, (p.strip() for p in rule.split(","))):
        operator, bound = re.fullmatch(r"([<>=!~]=?)\s*(\S+)", part).groups()  # pyright: ignore
        other = _numbers(bound)
        size = max(len(mine), len(other))
        a, b = (tuple(v + [0] * (size - len(v))) for v in (mine, other))
        if not {">=": a >= b, "<": a < b, "<=": a <= b, ">": a > b, "==": a == b}.get(operator):
            return Row(name, False, f"{version}, asked for is {rule}")
    return Row(name, True, version)


def _numbers(version: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", version.partition("+")[0])][:4]


def _devices(where: Topology) -> str:
    """Of a slice with several hosts the files of the chips are counted: jax would wait for the
    other hosts, which may never come."""
    chip = where.chip
    wanted = where.slices * where.chips // where.num_hosts
    if chip.platform == "tpu" and where.num_hosts > 1:
        files_ = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
        _of_slice(where)
        if len(files_) != wanted:
            raise ConfigError(f"{len(files_)} TPU chips, a host of {where.name} has {wanted}")
        return f"{wanted} TPU chips by their files; jax looks at them in the run"
    import jax

    devices = jax.local_devices()
    kinds = [d.device_kind for d in devices]
    found = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    if len(devices) != wanted * chip.devices_per_chip or set(kinds) != {chip.kind}:
        expected = f"{wanted * chip.devices_per_chip} x {chip.kind}"
        raise ConfigError(f"{found}; a host of {where.name} has {expected}")
    return found


def _of_slice(where: Topology) -> None:
    """What Kubernetes says of the slice, where it does."""
    given = os.environ.get("TPU_ACCELERATOR_TYPE", "")
    try:
        there = topology_lib.parse(given) if given else None
    except ConfigError:  # a name that mmjax does not know says nothing
        return
    if there and (there.chip, there.chips) != (where.chip, where.chips):
        raise ConfigError(f"the slice is {given}, not that of {where.name}")


def _writable(workdir: str) -> str:
    """A small file of a name of its own is written, read and removed."""
    folder = files.given(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    path, word = folder / f".doctor.{uuid.uuid4().hex}", uuid.uuid4().hex
    path.write_text(word)
    read = path.read_text()
    path.unlink()
    if read != word:
        raise ConfigError(f"{workdir}: what was read is not what was written")
    return f"{workdir}: written, read and removed"


def _records(source: Any, split: str) -> str:
    count = len(source.open(split))
    if not count:
        raise ConfigError(f"split {split!r} has no records")
    return f"{count:,} records in {split!r}"


def _tokenizer(path: str) -> str:
    if not files.exists(files.given(path)):
        raise ConfigError(f"{path} is not there; train it, or copy it to where this host sees it")
    return f"{path} is there"


def _caches() -> list[Path]:
    """Folders on the disks that caches fill."""
    try:
        cache = compile_cache.base()
    except compile_cache.Refused:
        return []
    while not cache.exists() and cache != cache.parent:
        cache = cache.parent
    return [cache]


def _room(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    if free < ROOM:
        raise ConfigError(f"{free / 1e9:.1f} GB free in {folder}; caches take {ROOM / 1e9:.0f}")
    return f"{free / 1e9:.1f} GB free in {folder}"
