"""`mmjax launch tpu`: Cloud TPU VMs, pod slices and several slices, as queued resources.

It fills in launch/tpu/pod.sh, or multislice.sh, and runs it.
"""

from __future__ import annotations

from mmjax.config.error import ConfigError
from mmjax.launch import running
from mmjax.launch.filling import filled, template
from mmjax.launch.job import Job
from mmjax.launch.running import SameName, Step

__all__ = ["Job", "files", "later", "needs", "same_name", "steps", "tpu"]

needs = "gcloud"
# What Google calls them: accelerator type, and image of the hosts.
GENERATIONS = {
    "v4": ("v4", "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", "v2-alpha-tpuv5"),
    "v6e": ("v6e", "v2-alpha-tpuv6e"),
}


def files(job: Job) -> dict[str, str]:
    """The script of a job, and what it shares with the other."""
    job.need("tpu", "topology", "zone")
    job.need_bucket("tpu")
    where = job.where
    if where.chip.name not in GENERATIONS:
        other = "launch gke" if where.chip.platform == "tpu" else "launch gke, slurm, sky or ssh"
        raise ConfigError(
            f"--topology {job.topology}: queued resources have {', '.join(GENERATIONS)}; use"
            f" {other}."
        )
    accelerator, runtime = GENERATIONS[where.chip.name]
    settings = job.settings() | {
        "ZONE": job.zone,
        "PROJECT": job.project,
        "ACCELERATOR": f"{accelerator}-{where.chips * where.chip.cores_per_chip}",
        "RUNTIME": runtime,
        "SLICES": str(where.slices),
        "SPOT": str(int(job.spot)),
        "PACKED": job.packed,
        "REQUIREMENT": job.requirement,
    }
    if where.num_hosts > 1:
        settings["ENVIRONMENT"] = ("MMJAX_DISTRIBUTED=1", *settings["ENVIRONMENT"])
    return {
        _name(job): filled(f"tpu/{_name(job)}", settings),
        "slices.sh": template("tpu/slices.sh"),
    }


def steps(job: Job) -> list[Step]:
    """One: ask, wait, copy, install, start, and show the log until the run has ended."""
    return [Step("train", ("bash", str(job.folder / _name(job))))]


def later(job: Job) -> list[Step]:
    """Go on where the run has stopped; stop it; delete the slices."""
    script = str(job.folder / _name(job))
    return [Step(verb, ("bash", script, verb)) for verb in ("resume", "stop", "delete")]


def same_name(job: Job) -> SameName:
    """A queued resource."""
    project = ("--project", job.project) if job.project else ()
    place = ("--zone", job.zone, *project)
    queue = ("gcloud", "compute", "tpus", "queued-resources")
    delete = " ".join((*queue, "delete", job.name, *place, "--force"))
    return SameName(
        (*queue, "describe", job.name, *place, "--format", "value(state.state)"),
        f"--name {job.name}: there is a queued resource of that name. Go on with it: bash"
        f" {job.folder / _name(job)} resume; end it: {delete}; or use another --name.",
    )


def tpu(job: Job, *, dry_run: bool = False) -> int:
    """Runs a job, or prints its script; returns the exit code.

    Raises ConfigError when there is no gcloud.
    """
    import mmjax.launch.tpu as target

    return running.launch(target, job, dry_run)


def _name(job: Job) -> str:
    return "pod.sh" if job.where.slices == 1 else "multislice.sh"
