"""What all targets share: a launch writes the files of a job and runs its commands, one by one.

A target is a module that `mmjax.cli.launch.target` names, with `files(job)`, `steps(job)`,
`later(job)` and `same_name(job)`.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from mmjax.config.error import ConfigError
from mmjax.errors import WorkdirBusy
from mmjax.launch.job import Job

__all__ = ["SameName", "Step", "Target", "launch", "script"]

END = "END_OF_FILE"  # of no line of a template, and values have no line ends
INSTALL = {
    "gcloud": "install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install)",
    "kubectl": "install it (https://kubernetes.io/docs/tasks/tools)",
    "sbatch": "run this on a login node of the cluster (https://slurm.schedmd.com)",
    "squeue": "run this on a login node of the cluster (https://slurm.schedmd.com)",
    "sky": "install SkyPilot (https://docs.skypilot.co)",
    "ssh": "install OpenSSH (https://www.openssh.com)",
    "scp": "install OpenSSH (https://www.openssh.com)",
}


class Step(NamedTuple):
    """A named command."""

    name: str
    command: tuple[str, ...]


class SameName(NamedTuple):
    """How to see whether something of a job's name runs: a command that then writes a word of
    output (`word`; "" = any), and what to do about it."""

    command: tuple[str, ...]
    remedy: str
    word: str = ""


class Target(Protocol):
    """Where a job may run.

    needs: the program of its command line.
    """

    needs: str

    def files(self, job: Job) -> dict[str, str]:
        """Text of each file by its name, the templates of `launch/` filled in."""
        ...

    def steps(self, job: Job) -> list[Step]:
        """Commands of a launch, in order. They find the files in `job.folder`."""
        ...

    def later(self, job: Job) -> list[Step]:
        """Commands that the user may want afterwards: go on, stop, end the costs."""
        ...

    def same_name(self, job: Job) -> SameName | None:
        """How to see whether a job of this name is there; None = the steps say so themselves."""
        ...


def script(target: Target, job: Job) -> str:
    """All that a launch does, as a shell script."""
    folder = shlex.quote(str(job.folder))
    planned = shlex.join(("mmjax", "plan", job.config, "--topology", job.topology, *job.overrides))
    lines = [f"# Not asked here: {planned}"] if job.topology else []
    lines += ["set -e", f"mkdir -p {folder}"]
    for name, text in target.files(job).items():
        lines += ["", f"cat > {folder}/{name} << '{END}'", text.rstrip("\n"), END]
    for name, command in target.steps(job):
        lines += ["", f"# {name}", shlex.join(command)]
    lines += ["", "# Later:"]
    lines += [f"# {name}: {shlex.join(command)}" for name, command in target.later(job)]
    return "\n".join(lines) + "\n"


def launch(target: Target, job: Job, dry_run: bool = False) -> int:
    """Runs a job, or prints its script; returns the exit code of the run.

    Raises:
      ConfigError: the command line of the target is not installed.
      WorkdirBusy: something of this name is there.
    """
    if dry_run:
        print(script(target, job), end="")
        return 0
    texts = target.files(job)  # first: they may refuse the job
    _refuse_a_second(target.same_name(job))
    _write(job.folder, texts)
    code = 0
    for name, command in target.steps(job):
        _say(f"{name}: {shlex.join(command)}")
        code = _run(command, target.needs)
        if code:
            _say(f"{name} ended with exit code {code}")
            break
    for name, command in target.later(job):
        _say(f"to {name}: {shlex.join(command)}")
    return code


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)


def _run(command: Sequence[str], needs: str) -> int:
    _find(needs)
    try:
        return subprocess.run(command).returncode
    except KeyboardInterrupt:  # the command has got it too
        _say("the log is left; what was started goes on")
        return 130


def _refuse_a_second(same: SameName | None) -> None:
    if same is None:
        return
    _find(same.command[0])
    done = subprocess.run(same.command, capture_output=True, text=True)
    words = done.stdout.split()
    # A failure says that it is not there, or what the next command will say better.
    if not done.returncode and words and (not same.word or same.word in words):
        raise WorkdirBusy(same.remedy)


def _find(program: str) -> None:
    if shutil.which(program) is None:
        raise ConfigError(
            f"there is no {program} here: {INSTALL[program]}, or --dry-run and run the script"
            " where it is."
        )


def _say(text: str) -> None:
    print(f"mmjax launch: {text}", file=sys.stderr, flush=True)
