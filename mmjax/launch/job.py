"""One job, whatever machines it runs on: what to train, where, and how often to try again."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import mmjax
from mmjax.config.error import ConfigError
from mmjax.plan import topology as topology_lib
from mmjax.plan.topology import Topology
from mmjax.processes import compile_cache

__all__ = ["RESTARTS", "Job", "checkout"]

RESTARTS = 1000  # of a machine; what bounds them are starts without progress
SHIPPED = (
    *("mmjax", "configs", "launch", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"),
)
NAME = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"  # a pod of a JobSet adds 23 letters to it, of 63


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A training run on machines of its own.

    Fields:
      config: file.py or file.py:function. workdir: a folder that all hosts see.
      topology: as `mmjax plan` takes it: v5e-64, 2xv5p-128, 4xh100x8; "" = what is there.
      name: of slice, JobSet or job, and of the folder on the hosts.
      zone, project: of Google Cloud; "" = those of gcloud. partition, account, time: of Slurm.
      hosts: names for ssh, the first is the coordinator. cloud: of SkyPilot; "" = the cheapest.
      package: what pip installs on the hosts; "" = the checkout that runs here, else this release.
      python: one of the hosts in which mmjax is installed already; "" = an environment is made.
      image: of containers. env: variables of every host.
      spot: cheaper, and taken away at any time. retries: starts in a row without progress.
      processes: on each host; its chips are shared out evenly.
      overrides: further arguments of `mmjax train`.
      compile_cache: of its option; "" = of each target's own, off = none.
    """

    config: str
    workdir: str
    topology: str = ""
    name: str = "mmjax"
    zone: str = ""
    project: str = ""
    partition: str = ""
    account: str = ""
    time: str = ""
    hosts: tuple[str, ...] = ()
    cloud: str = ""
    package: str = ""
    python: str = ""
    image: str = ""
    env: tuple[tuple[str, str], ...] = ()
    spot: bool = False
    retries: int = 3
    processes: int = 1
    overrides: tuple[str, ...] = ()
    compile_cache: str = ""

    def __post_init__(self):
        if not re.fullmatch(NAME, self.name):
            raise ConfigError(
                f"--name {self.name}: use small letters, digits and dashes, at most 40, a letter"
                " first."
            )
        for field in dataclasses.fields(self):
            _check_characters(field.name, getattr(self, field.name))
        for option, value in (("retries", self.retries), ("num-processes", self.processes)):
            if value < 1:
                raise ConfigError(f"--{option} {value}: use 1 or more.")
        for name, _ in self.env:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ConfigError(f"--env {name}: write NAME=VALUE, a letter or _ first.")
        if not self.workdir:
            raise ConfigError("--workdir is empty; name a folder that all hosts see.")
        if not self.config_file.is_file():
            raise ConfigError(f"{self.config}: there is no file {str(self.config_file)!r}.")
        if self.topology:
            self._check_processes()

    def _check_processes(self) -> None:
        if self.chips_per_host % self.processes:
            raise ConfigError(
                f"--num-processes {self.processes}: a host of {self.topology} has"
                f" {self.chips_per_host} chips; use 1 or {self.chips_per_host}."
            )
        if self.where.chip.platform == "tpu" and self.processes > 1:
            raise ConfigError(
                f"--num-processes {self.processes}: all chips of a TPU host belong to one process;"
                " use 1."
            )

    @property
    def where(self) -> Topology:
        """The topology."""
        return topology_lib.parse(self.topology)

    @property
    def chips_per_host(self) -> int:
        """Chips that a host has."""
        return self.where.slices * self.where.chips // self.where.num_hosts

    @property
    def config_file(self) -> Path:
        """The file of the config, here."""
        path = Path(self.config)
        return path if path.is_file() else Path(self.config.rpartition(":")[0])

    @property
    def remote_config(self) -> str:
        """The config as hosts name it, below the folder into which `packed` goes."""
        root, file = checkout(), self.config_file.absolute()
        inside = root is not None and file.is_relative_to(root / "configs")
        shown = str(file.relative_to(root)) if inside and root else file.name
        return shown + self.config.removeprefix(str(self.config_file))

    @property
    def folder(self) -> Path:
        """Where files of the launch lie here: a folder of the user's own, since in /tmp others
        could exchange what the hosts will run."""
        try:
            return compile_cache.own_folder("launch") / self.name
        except compile_cache.Refused as why:
            raise ConfigError(
                f"launch: there is no place for the code that goes to the hosts: {why}; set"
                " XDG_CACHE_HOME to a folder of your own."
            ) from why

    @property
    def requirement(self) -> str:
        """What pip installs on a host, in the folder into which `packed` went."""
        if self.package:
            return self.package
        extras = "cloud" if self.workdir.startswith("gs://") else ""
        platform = self.where.chip.platform if self.topology else ""
        names = ",".join(n for n in ({"tpu": "tpu", "gpu": "cuda"}.get(platform), extras) if n)
        names = f"[{names}]" if names else ""
        return f".{names}" if checkout() else f"mmjax{names}=={mmjax.__version__}"

    @property
    def kept(self) -> str:
        """Where compiled programs are kept, so that a host that comes anew does not compile: a
        folder of the workdir's bucket, never one of the workdir; "" = each host's own."""
        if self.compile_cache:
            return self.compile_cache
        bucket = re.match(r"(gs://[^/]+)", self.workdir)
        return f"{bucket[1]}/mmjax_compiled" if bucket else ""

    def settings(self) -> dict[str, str | tuple[str, ...]]:
        """What every template asks for."""
        return {
            "NAME": self.name,
            "CONFIG": self.remote_config,
            "WORKDIR": self.workdir,
            "TOPOLOGY": self.topology,
            "COMPILE_CACHE": self.kept,
            "RETRIES": str(self.retries),
            "OVERRIDES": self.overrides,
            "ENVIRONMENT": tuple(f"{name}={value}" for name, value in self.env),
        }

    def need(self, target: str, *fields: str) -> None:
        """Raises ConfigError for fields that a target cannot do without."""
        missing = [f"--{name}" for name in fields if not getattr(self, name)]
        if missing:
            raise ConfigError(f"launch {target} needs {' '.join(missing)}.")

    def need_bucket(self, target: str) -> None:
        """Raises ConfigError for a workdir that would go with the machines."""
        if not self.workdir.startswith("gs://"):
            raise ConfigError(
                f"--workdir {self.workdir}: the disks of launch {target} go with its machines; use"
                " a bucket, gs://BUCKET/FOLDER."
            )

    @property
    def packed(self) -> tuple[str, ...]:
        """Arguments of tar for what hosts need: the checkout that runs here, if there is one, and
        the config."""
        root, file, args = checkout(), self.config_file.absolute(), []
        if root:
            args += ["-C", str(root), *(n for n in SHIPPED if (root / n).exists())]
        if not root or not file.is_relative_to(root / "configs"):
            args += ["-C", str(file.parent), file.name]
        return tuple(args)


def checkout() -> Path | None:
    """The source tree that this mmjax is imported from; None = it was installed from a wheel."""
    root = Path(mmjax.__file__).absolute().parent.parent
    return root if (root / "pyproject.toml").exists() else None


def _check_characters(field: str, value: object) -> None:
    """Scripts are made of lines: a value with a line end would be another command."""
    values = value if isinstance(value, tuple) else (value,)
    for item in values:
        for text in item if isinstance(item, tuple) else (item,):
            if isinstance(text, str) and re.search(r"[\x00-\x1f\x7f]", text):
                raise ConfigError(f"--{field.replace('_', '-')} {text!r}: no control characters.")
