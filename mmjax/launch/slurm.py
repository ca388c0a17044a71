"""`mmjax launch slurm`: GPU nodes of a Slurm cluster, whose disks and Python all nodes share.

It fills in launch/slurm/train.sbatch, and gives it to sbatch.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mmjax.config.error import ConfigError
from mmjax.launch.filling import filled
from mmjax.launch.job import Job
from mmjax.launch.running import SameName, Step

__all__ = ["files", "later", "needs", "same_name", "steps"]

needs = "sbatch"
TIME = r"\d+(:\d\d){0,2}|\d+-\d\d?(:\d\d){0,2}"  # minutes, hours and days as sbatch takes them


def files(job: Job) -> dict[str, str]:
    """The batch script."""
    job.need("slurm", "topology")
    if job.where.chip.platform != "gpu":
        raise ConfigError(
            f"--topology {job.topology}: Slurm has GPU nodes; write 4xh100x8, or use launch tpu or"
            " gke."
        )
    if job.time and not re.fullmatch(TIME, job.time):
        raise ConfigError(f"--time {job.time}: write D-HH:MM:SS or HH:MM:SS.")
    settings = job.settings() | {
        "MMJAX": (job.python or sys.executable, "-P", "-m", "mmjax"),
        "CONFIG": _absolute(job),
        "PROCESSES": str(job.processes),
        "DEVICES": str(job.chips_per_host // job.processes) if job.processes > 1 else "",
    }
    del settings["NAME"]  # an option of sbatch
    return {"train.sbatch": filled("slurm/train.sbatch", settings)}


def steps(job: Job) -> list[Step]:
    """One: sbatch waits for the job, and ends with its exit code."""
    where = job.where
    options = (
        f"--job-name={job.name}",
        f"--nodes={where.num_hosts}",
        f"--gpus-per-node={job.chips_per_host}",
        *((f"--partition={job.partition}",) if job.partition else ()),
        *((f"--account={job.account}",) if job.account else ()),
        *((f"--time={job.time}",) if job.time else ()),
    )
    return [Step("train", ("sbatch", "--wait", *options, str(job.folder / "train.sbatch")))]


def later(job: Job) -> list[Step]:
    """End the job; the same launch goes on."""
    return [
        Step("see it", ("squeue", "--me", f"--name={job.name}")),
        Step("stop", ("scancel", "--me", f"--name={job.name}", "--signal=TERM")),
    ]


def same_name(job: Job) -> SameName:
    """A job of this user."""
    return SameName(
        ("squeue", "--me", f"--name={job.name}", "--noheader", "--format=%i"),
        f"--name {job.name}: a job of that name is queued or runs. See it: squeue --me"
        f" --name={job.name}; end it: scancel --me --name={job.name}; or use another --name.",
    )


def _absolute(job: Job) -> str:
    return str(Path(job.config_file).absolute()) + job.config.removeprefix(str(job.config_file))
