"""Flags of libtpu and XLA with which a launched run starts; `run.json` records them.

Few, and each with its reason. A flag that the user has set stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["environment"]

# What hides the traffic between chips behind products. Weights are gathered a layer ahead inside
# the scan (docs/scale.md), which gains only where a gather runs while something else computes.
TPU = (
    "--xla_tpu_enable_async_collective_fusion=true",  # collectives join the fusions around them
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",  # those of fsdp above all
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",  # across more than one fusion
    "--xla_tpu_overlap_compute_collective_tc=true",  # tensor core computes while they travel
)
GPU = (
    # Without it XLA starts a collective where it is needed and waits for it.
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    # A scan's gather of the next layer, and the scatter of the last one's gradients, run beside
    # this layer.
    "--xla_gpu_enable_pipelined_all_gather=true",
    "--xla_gpu_enable_pipelined_reduce_scatter=true",
)
PLATFORMS = {"tpu": ("LIBTPU_INIT_ARGS", TPU), "gpu": ("XLA_FLAGS", GPU)}


def environment(platform: str, env: Mapping[str, str]) -> dict[str, str]:
    """The variable that holds the flags of a platform (tpu, gpu), added to what `env` has."""
    variable, flags = PLATFORMS[platform]
    given = env.get(variable, "").split()
    named = {flag.partition("=")[0] for flag in given}
    added = [flag for flag in flags if flag.partition("=")[0] not in named]
    return {variable: " ".join([*given, *added])}
