"""`mmjax launch sky`: any cloud that SkyPilot knows, as a managed job.

It fills in launch/sky/train.yaml, and gives it to `sky jobs launch`.
"""

from __future__ import annotations

from typing import Any

from mmjax.config.error import ConfigError
from mmjax.launch import job as job_lib
from mmjax.launch import tpu
from mmjax.launch.filling import filled
from mmjax.launch.job import Job
from mmjax.launch.running import SameName, Step

__all__ = ["files", "later", "needs", "same_name", "steps"]

needs = "sky"
# Names of GPUs.
GPUS = {
    "b200": "B200",
    "h200": "H200",
    "h100": "H100",
    "a100": "A100-80GB",
    "a100-40gb": "A100",
    "l4": "L4",
    "v100": "V100",
    "t4": "T4",
}
OUTSIDE = "~/mmjax_config"  # where a config lies that is in no checkout


def files(job: Job) -> dict[str, str]:
    """The task."""
    job.need("sky", "topology")
    job.need_bucket("sky")
    root, file = job_lib.checkout(), job.config_file.absolute()
    inside = not root or file.is_relative_to(root / "configs")
    config = job.remote_config if inside else f"{OUTSIDE}/{job.remote_config}"
    settings: dict[str, Any] = job.settings() | {
        "CONFIG": config,
        "FOLDER": str(root or file.parent),
        "MOUNTS": {} if inside else {f"{OUTSIDE}/{file.name}": str(file)},
        "NODES": 1 if job.where.chip.platform == "tpu" else job.where.slices,
        "ACCELERATORS": _accelerators(job),
        "CLOUD": job.cloud or None,
        "SPOT": job.spot,
        "IMAGE": f"docker:{job.image}" if job.image else None,
        "PROCESSES": str(job.processes),
        "DEVICES": str(job.chips_per_host // job.processes) if job.processes > 1 else "",
        "OVERRIDES": "\n".join(job.overrides),
        "ENVIRONMENT": "\n".join(f"{name}={value}" for name, value in job.env),
        "REQUIREMENT": job.requirement,
    }
    return {"train.yaml": filled("sky/train.yaml", settings)}


def steps(job: Job) -> list[Step]:
    """One: SkyPilot finds machines, runs the job, and starts it again where they are taken away."""
    task = str(job.folder / "train.yaml")
    return [Step("train", ("sky", "jobs", "launch", "--yes", "--name", job.name, task))]


def later(job: Job) -> list[Step]:
    """Look at the log; end the job, and with it the costs."""
    return [
        Step("follow", ("sky", "jobs", "logs", "--name", job.name)),
        Step("cancel", ("sky", "jobs", "cancel", "--yes", "--name", job.name)),
    ]


def same_name(job: Job) -> SameName:
    """A managed job that has not ended."""
    return SameName(
        ("sky", "jobs", "queue", "--skip-finished"),
        f"--name {job.name}: a managed job of that name is there. See it: sky jobs logs --name"
        f" {job.name}; end it: sky jobs cancel --name {job.name}; or use another --name.",
        word=job.name,
    )


def _accelerators(job: Job) -> str:
    where = job.where
    if where.chip.platform == "gpu":
        return f"{GPUS[where.chip.name]}:{where.chips}"
    if where.slices > 1 or where.chip.name not in tpu.GENERATIONS:
        raise ConfigError(
            f"--topology {job.topology}: SkyPilot has single slices of"
            f" {', '.join(tpu.GENERATIONS)}; use launch tpu or gke."
        )
    accelerator, _ = tpu.GENERATIONS[where.chip.name]
    return f"tpu-{accelerator}-{where.chips * where.chip.cores_per_chip}"
