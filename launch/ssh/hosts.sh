#!/usr/bin/env bash
# Trains on hosts that ssh reaches without a password: copies, installs, starts one mmjax a host,
# and shows the log of the first. Edit the settings, then run it in the folder of your configs.
# Ctrl-C leaves the log; the run goes on.
#   bash hosts.sh           all of it; ends with the exit code of the run
#   bash hosts.sh resume    without copying and installing
#   bash hosts.sh follow    the log of a run that is alive
#   bash hosts.sh stop      saves and ends the run
# `mmjax launch ssh CONFIG ... --dry-run` fills in the settings for you.
set -eo pipefail

# Of the folder on the hosts.
NAME=mmjax
# Names for ssh; the others reach the first at PORT.
HOSTS=(host0 host1)
PORT=8476
CONFIG=configs/quickstart.py:tiny
# A folder that all hosts see, or a bucket.
WORKDIR=/shared/runs/demo
# What they are together, as mmjax plan names it; empty: not looked at.
TOPOLOGY=
# Processes of a host, and GPUs of each; empty: all.
PROCESSES=1
DEVICES=
# Compiled programs; empty: the cache folder of each host.
COMPILE_CACHE=
# Starts in a row without progress after which the run ends.
RETRIES=3
# Further arguments of mmjax train.
OVERRIDES=()
ENVIRONMENT=()
# Arguments of tar: what the hosts need. What pip installs there.
PACKED=(-C . mmjax configs launch pyproject.toml constraints.txt README.md LICENSE)
REQUIREMENT='.[cuda]'
# A Python of the hosts that has mmjax; empty: an environment is made there.
PYTHON=

folder=mmjax-$NAME
archive=$(dirname "${BASH_SOURCE[0]}")/$folder.tar.gz
python=${PYTHON:-.venv/bin/python}

say() { echo "launch: $*" >&2; }

on() { ssh -o BatchMode=yes -o ServerAliveInterval=15 -- "$@"; }

# A function for every host at once, with its number; the code of one that failed.
everywhere() {
  local i pid pids=() code=0
  for i in "${!HOSTS[@]}"; do
    "$1" "${HOSTS[i]}" "$i" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
  return "$code"
}

install() {
  local constraints='' what make=':'
  printf -v what '%q' "$REQUIREMENT"
  [[ $REQUIREMENT != .* ]] || constraints='-c constraints.txt'
  [ -n "$PYTHON" ] || make="python3 -m pip install --quiet --user uv; \
python3 -m uv venv --quiet --allow-existing --python 3.12; \
python3 -m uv pip install --quiet $constraints $what"
  scp -q -o BatchMode=yes -- "$archive" "$1:$folder.tar.gz" || return
  on "$1" "set -e; mkdir -p $folder; tar -xzf $folder.tar.gz -C $folder; cd $folder; $make"
}

# Each host is looked at before anything compiles; then its processes train, with restarts.
start() {
  local mmjax=(env "${ENVIRONMENT[@]}" "$python" -P -m mmjax) place=(-n "$PROCESSES") check run
  local seen=()
  [ -z "$TOPOLOGY" ] || seen=(--topology "$TOPOLOGY")
  [ -z "$DEVICES" ] || place+=(--devices-per-process "$DEVICES")
  [ -z "$COMPILE_CACHE" ] || place+=(--compile-cache "$COMPILE_CACHE")
  ((${#HOSTS[@]} == 1)) ||
    place+=(--nodes "${#HOSTS[@]}" --node-rank "$2" --coordinator "${HOSTS[0]#*@}:$PORT")
  check=$(printf '%q ' "${mmjax[@]}" doctor "$CONFIG" --workdir "$WORKDIR" "${seen[@]}" \
    "${OVERRIDES[@]}")
  run=$(printf '%q ' "${mmjax[@]}" launch local "$CONFIG" --workdir "$WORKDIR" "${seen[@]}" \
    "${place[@]}" --retries "$RETRIES" --restarts 1000 -- "${OVERRIDES[@]}")
  run=$(printf '%q' "$check && $run; echo \$? > code")
  on "$1" "cd $folder; \
if [ -f pid ] && kill -0 \$(cat pid) 2> /dev/null; then \
echo 'a run of this name is alive here: bash hosts.sh stop, or another NAME' >&2; exit 76; fi; \
rm -f code; nohup bash -c $run > log 2>&1 < /dev/null & echo \$! > pid"
}

stop() {
  on "$1" "cd $folder && pkill -TERM -P \$(cat pid) && tail --pid \$(cat pid) -f /dev/null"
}

# Waits for the run; 69 when the host does not answer, or lost the run with its code.
ended() {
  local code=0
  on "$1" "cd $folder; tail --pid \$(cat pid) -f /dev/null; exit \$(cat code)" || code=$?
  ((code != 255)) || code=69
  ((code == 0)) || say "$1: exit code $code"
  return "$code"
}

# The log of the first host until the run has ended there. That tells most; then the others.
follow() {
  local code=0
  on "${HOSTS[0]}" "cd $folder; tail -n +1 --pid \$(cat pid) -F log; exit \$(cat code)" || code=$?
  if ((code == 0)); then
    everywhere ended
  else
    everywhere ended || true
    return "$code"
  fi
}

case ${1:-train} in
  train)
    tar --create --gzip --file "$archive" --exclude __pycache__ "${PACKED[@]}"
    everywhere install
    everywhere start
    follow
    ;;
  resume) everywhere start && follow ;;
  follow) follow ;;
  stop) everywhere stop ;;
  *)
    say "$1: there is train, resume, follow, stop"
    exit 2
    ;;
esac
