#!/usr/bin/env bash
# Trains on a Cloud TPU VM or a pod slice: asks for it, installs, runs and shows the log; when spot
# capacity was taken away, asks again. Edit the settings, then run it in the folder of your configs.
#   bash pod.sh           all of it; ends with the exit code of the run
#   bash pod.sh resume    on a slice that is there
#   bash pod.sh stop      saves and ends the run; the slice stays, and costs
#   bash pod.sh delete    ends the costs
# `mmjax launch tpu CONFIG ... --dry-run` fills in the settings for you.
set -eo pipefail

# Of the slice, and of the folder on its hosts.
NAME=mmjax
ZONE=us-west4-b
# Empty: that of gcloud.
PROJECT=
ACCELERATOR=v5litepod-16
RUNTIME=v2-alpha-tpuv5-lite
# The same as mmjax names it.
TOPOLOGY=v5e-16
SLICES=1
# 1: cheaper, and taken away at any time.
SPOT=0
CONFIG=configs/quickstart.py:tiny
WORKDIR=gs://BUCKET/runs/demo
# Compiled programs, so that a slice that comes anew does not compile. Whoever may write there runs
# code on your hosts; off: nowhere.
COMPILE_CACHE=gs://BUCKET/mmjax_compiled
# Starts in a row without progress after which the run ends.
RETRIES=3
# Further arguments of mmjax train.
OVERRIDES=()
# On several hosts jax must be told to look for the others.
ENVIRONMENT=(MMJAX_DISTRIBUTED=1)
# Arguments of tar: what the hosts need. What pip installs there.
PACKED=(-C . mmjax configs launch pyproject.toml constraints.txt README.md LICENSE)
REQUIREMENT='.[tpu,cloud]'
# Seconds between two looks at the state of the slice.
POLL=30

# shellcheck source=launch/tpu/slices.sh
source "$(dirname "${BASH_SOURCE[0]}")/slices.sh"
main "$@"
