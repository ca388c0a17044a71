"""`mmjax launch ssh`: hosts of your own, which ssh reaches without a password.

It fills in launch/ssh/hosts.sh, and runs it.
"""

from __future__ import annotations

import re

from mmjax.config.error import ConfigError
from mmjax.launch.filling import filled
from mmjax.launch.job import Job
from mmjax.launch.running import Step

__all__ = ["files", "later", "needs", "same_name", "steps"]

needs = "ssh"
HOST = r"[A-Za-z0-9_][\w.@-]*"  # no option of ssh, nothing that a shell reads


def files(job: Job) -> dict[str, str]:
    """The script."""
    job.need("ssh", "hosts")
    for host in job.hosts:
        if not re.fullmatch(HOST, host, re.ASCII):
            raise ConfigError(f"--hosts {host}: write a name or USER@NAME.")
    if len(set(job.hosts)) < len(job.hosts):
        raise ConfigError(f"--hosts {','.join(job.hosts)}: a host stands there twice.")
    if job.topology and job.where.num_hosts != len(job.hosts):
        raise ConfigError(
            f"--hosts {','.join(job.hosts)}: {len(job.hosts)} of them, and {job.topology} has"
            f" {job.where.num_hosts}."
        )
    devices = job.chips_per_host // job.processes if job.topology and job.processes > 1 else ""
    settings = job.settings() | {
        "HOSTS": job.hosts,
        "PROCESSES": str(job.processes),
        "DEVICES": str(devices),
        "PACKED": job.packed,
        "REQUIREMENT": job.requirement,
        "PYTHON": job.python,
    }
    return {"hosts.sh": filled("ssh/hosts.sh", settings)}


def steps(job: Job) -> list[Step]:
    """One: copy, install, start, and show the log until the run has ended."""
    return [Step("train", ("bash", str(job.folder / "hosts.sh")))]


def later(job: Job) -> list[Step]:
    """Go on where the run has stopped; look at the log; stop it."""
    script = str(job.folder / "hosts.sh")
    return [Step(verb, ("bash", script, verb)) for verb in ("resume", "follow", "stop")]


def same_name(job: Job) -> None:
    """Each host knows whether a run of this name is alive there: `start` ends with 76."""
