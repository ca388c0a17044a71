"""`mmjax launch tpu`: the gcloud commands that train on a Cloud TPU VM or pod slice.

A job is a list of commands; `--dry-run` prints them as a shell script, a real launch runs them.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import mmjax
from mmjax.config.error import ConfigError
from mmjax.processes import compile_cache

__all__ = ["Job", "Step", "tpu"]


class Generation(NamedTuple):
    """What Google calls it: accelerator type, image, and how its sizes count."""

    accelerator: str
    runtime: str
    per_chip: int  # the size in the name counts cores: 2, or chips: 1
    one_host: int  # largest number of chips on a single host


GENERATIONS = {
    "v4": Generation("v4", "tpu-ubuntu2204-base", 2, 4),
    "v5e": Generation("v5litepod", "v2-alpha-tpuv5-lite", 1, 8),
    "v5p": Generation("v5p", "v2-alpha-tpuv5", 2, 4),
    "v6e": Generation("v6e", "v2-alpha-tpuv6e", 1, 8),
}
SHIPPED = ("mmjax", "configs", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
WAIT = """while state=$({describe}); do
  echo "state: $state"
  case $state in
    ACTIVE) exit 0 ;;
    FAILED|SUSPENDING|SUSPENDED) exit 69 ;;
  esac
  sleep 30
done
exit 1"""


class Step(NamedTuple):
    """A named command."""

    name: str
    command: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A training run on a slice of its own.

    Fields:
      config: file.py or file.py:function. workdir: in a bucket, gs://...
      topology: v5e-64; sizes count chips for v5e and v6e, cores for v4 and v5p, as Google does.
      name: of the slice, and of the folder on its hosts. zone, project: where; "" = gcloud's own.
      spot: cheaper, and taken away at any time.
      overrides: further arguments of `mmjax train`. compile_cache: of its option; "" = its default.
    """

    config: str
    workdir: str
    topology: str
    name: str
    zone: str
    project: str = ""
    spot: bool = False
    overrides: tuple[str, ...] = ()
    compile_cache: str = ""

    def __post_init__(self):
        generation, _, size = self.topology.partition("-")
        if generation not in GENERATIONS or not size.isdecimal() or int(size) < 1:
            raise ConfigError(
                f"--topology {self.topology}: write GENERATION-SIZE, such as v5e-64; there is"
                f" {', '.join(GENERATIONS)}."
            )
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise ConfigError(
                f"--name {self.name}: use small letters, digits and dashes, a letter first."
            )
        if not self.workdir.startswith("gs://"):
            raise ConfigError(
                f"--workdir {self.workdir}: the disks of a slice go with it; use a bucket,"
                " gs://BUCKET/FOLDER."
            )
        if not self._config_file.is_file():
            raise ConfigError(f"{self.config}: there is no file {str(self._config_file)!r}.")

    def steps(self) -> list[Step]:
        """What a launch runs, in order; the last shows the log until the run has ended."""
        return [
            Step("create", self._create()),
            Step("wait", ("bash", "-c", WAIT.format(describe=shlex.join(self._describe())))),
            Step("pack", self._pack()),
            Step("copy", self._vm("scp", self._archive, f"{self.name}:")),
            Step("install", self._ssh("all", self._install())),
            Step("start", self._ssh("all", self._start())),
            Step("tail", self._ssh("0", self._tail())),
        ]

    def later(self) -> list[Step]:
        """What the user may want afterwards: go on where the run has stopped; delete."""
        command = ("gcloud", "compute", "tpus", "queued-resources", "delete", self.name)
        return [
            Step("resume", self._ssh("all", self._start())),
            Step("delete", (*command, *self._place(), "--force", "--quiet")),
        ]

    def script(self) -> str:
        """All commands as a shell script."""
        lines = ["set -e"]
        for name, command in self.steps():
            lines += ["", f"# {name}", shlex.join(command)]
        lines += ["", "# Later: resume starts it again on the same slice, delete ends the costs."]
        for name, command in self.later():
            lines.append(f"# {name}: {shlex.join(command)}")
        return "\n".join(lines) + "\n"

    @property
    def _config_file(self) -> Path:
        path = Path(self.config)
        return path if path.is_file() else Path(self.config.rpartition(":")[0])

    @property
    def _archive(self) -> str:
        """In a folder of the user's own: in /tmp others could exchange what the hosts will run."""
        try:
            return str(compile_cache.own_folder("launch") / f"mmjax-{self.name}.tar.gz")
        except compile_cache.Refused as why:
            raise ConfigError(
                f"launch tpu: there is no place for the archive of the code: {why}; set"
                " XDG_CACHE_HOME to a folder of your own."
            ) from why

    @property
    def _folder(self) -> str:
        return f"mmjax-{self.name}"

    @property
    def hosts(self) -> int:
        """Hosts of the slice."""
        generation, _, size = self.topology.partition("-")
        g = GENERATIONS[generation]
        chips = max(1, int(size) // g.per_chip)
        return 1 if chips <= g.one_host else -(-chips // 4)

    def _place(self) -> tuple[str, ...]:
        project = ("--project", self.project) if self.project else ()
        return (*project, "--zone", self.zone)

    def _create(self) -> tuple[str, ...]:
        generation, _, size = self.topology.partition("-")
        g = GENERATIONS[generation]
        return (
            *("gcloud", "compute", "tpus", "queued-resources", "create", self.name),
            *("--node-id", self.name, *self._place()),
            *("--accelerator-type", f"{g.accelerator}-{size}", "--runtime-version", g.runtime),
            *(("--spot",) if self.spot else ()),
        )

    def _describe(self) -> tuple[str, ...]:
        command = ("gcloud", "compute", "tpus", "queued-resources", "describe", self.name)
        return (*command, *self._place(), "--format", "value(state.state)")

    def _vm(self, verb: str, *args: str, worker: str = "all") -> tuple[str, ...]:
        command = ("gcloud", "compute", "tpus", "tpu-vm", verb, *args)
        return (*command, *self._place(), "--worker", worker)

    def _ssh(self, worker: str, command: str) -> tuple[str, ...]:
        return (*self._vm("ssh", self.name, worker=worker), "--command", command)

    def _pack(self) -> tuple[str, ...]:
        """The checkout that runs here, if there is one, and the config."""
        command = ["tar", "--create", "--gzip", "--file", self._archive, "--exclude", "__pycache__"]
        root, file = _checkout(), self._config_file.absolute()
        if root:
            command += ["-C", str(root), *(n for n in SHIPPED if (root / n).exists())]
        if not root or not file.is_relative_to(root / "configs"):
            command += ["-C", str(file.parent), file.name]
        return tuple(command)

    def _install(self) -> str:
        """uv, because the images bring an older Python."""
        extras = "[tpu,cloud]"
        what = f"-c constraints.txt -e '.{extras}'"
        if not _checkout():
            what = f"'mmjax{extras}=={mmjax.__version__}'"
        return (
            f"set -e; mkdir -p {self._folder}; tar -xzf {Path(self._archive).name}"
            f" -C {self._folder}; cd {self._folder};"
            " curl -LsSf https://astral.sh/uv/install.sh | sh;"
            " ~/.local/bin/uv venv --quiet --allow-existing --python 3.11;"
            f" ~/.local/bin/uv pip install --quiet {what}"
        )

    def _start(self) -> str:
        root, file = _checkout(), self._config_file.absolute()
        inside = root is not None and file.is_relative_to(root / "configs")
        shown = str(file.relative_to(root)) if inside and root else file.name
        function = self.config.removeprefix(str(self._config_file))
        kept = ["--compile-cache", self.compile_cache] if self.compile_cache else []
        train = shlex.join([shown + function, "--workdir", self.workdir, *kept])
        more = f" -- {shlex.join(self.overrides)}" if self.overrides else ""
        joined = "MMJAX_DISTRIBUTED=1 " if self.hosts > 1 else ""
        run = f"{joined}.venv/bin/mmjax launch local -n 1 {train}{more}; echo $? > code"
        return (
            f"cd {self._folder}; rm -f code; nohup bash -c {shlex.quote(run)}"
            " > log 2>&1 < /dev/null & echo $! > pid"
        )

    def _tail(self) -> str:
        return f"cd {self._folder}; tail -n +1 --pid $(cat pid) -F log; exit $(cat code)"


def tpu(job: Job, *, dry_run: bool = False) -> int:
    """Runs the commands of a job, or prints them; returns the exit code.

    Raises ConfigError when there is no gcloud.
    """
    if dry_run:
        print(job.script(), end="")
        return 0
    for name, command in job.steps():
        print(f"mmjax launch: {name}: {shlex.join(command)}", file=sys.stderr, flush=True)
        try:
            code = subprocess.run(command).returncode
        except FileNotFoundError as error:
            raise ConfigError(
                f"launch tpu: there is no {error.filename} here; install the Google Cloud CLI, or"
                " --dry-run and run the script where it is."
            ) from error
        if code:
            print(f"mmjax launch: {name} ended with exit code {code}", file=sys.stderr)
            break
    for name, command in job.later():
        print(f"mmjax launch: to {name}: {shlex.join(command)}", file=sys.stderr)
    return code


def _checkout() -> Path | None:
    """The source tree that this mmjax is imported from; None = it was installed from a wheel."""
    root = Path(mmjax.__file__).absolute().parent.parent
    return root if (root / "pyproject.toml").exists() else None
