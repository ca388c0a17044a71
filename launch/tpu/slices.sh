# shellcheck shell=bash
# What pod.sh and multislice.sh do; they set the settings first.

folder=mmjax-$NAME
place=(--zone "$ZONE")
[ -z "$PROJECT" ] || place+=(--project "$PROJECT")
nodes=("$NAME")
if ((SLICES > 1)); then
  for ((i = 0; i < SLICES; i++)); do nodes[i]=$NAME-$i; done
fi

say() { echo "launch: $*" >&2; }

queue() { gcloud compute tpus queued-resources "$1" "$NAME" "${place[@]}" "${@:2}"; }

create() {
  local asked=(--node-id "$NAME")
  ((SLICES == 1)) || asked=(--node-count "$SLICES" --node-prefix "$NAME")
  ((SPOT == 0)) || asked+=(--spot)
  say "asking for $SLICES x $ACCELERATOR"
  queue create "${asked[@]}" --accelerator-type "$ACCELERATOR" --runtime-version "$RUNTIME"
}

state() { queue describe --format 'value(state.state)'; }

delete() { queue delete --force --quiet; }

wait_until_active() {
  local now
  while now=$(state); do
    say "state: $now"
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED) return 69 ;;
    esac
    sleep "$POLL"
  done
  return 1
}

# On a slice, on a worker of it (or all), a command.
on() {
  gcloud compute tpus tpu-vm ssh "$1" "${place[@]}" --worker "$2" --command "$3"
}

# A function for every slice at once; the code of one that failed.
everywhere() {
  local node pid pids=() code=0
  for node in "${nodes[@]}"; do
    "$1" "$node" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
  return "$code"
}

# uv, because the images bring an older Python.
install() {
  local constraints='' what
  printf -v what '%q' "$REQUIREMENT"
  [[ $REQUIREMENT != .* ]] || constraints='-c constraints.txt'
  gcloud compute tpus tpu-vm scp "$archive" "$1:$folder.tar.gz" "${place[@]}" --worker all ||
    return
  on "$1" all "set -e; mkdir -p $folder; tar -xzf $folder.tar.gz -C $folder; cd $folder; \
python3 -m pip install --quiet --user uv; \
python3 -m uv venv --quiet --allow-existing --python 3.12; \
python3 -m uv pip install --quiet $constraints $what"
}

# Each host is looked at before anything compiles; then one process trains, with restarts.
start() {
  local mmjax=(env "${ENVIRONMENT[@]}" .venv/bin/mmjax) kept=() check run
  [ -z "$COMPILE_CACHE" ] || kept=(--compile-cache "$COMPILE_CACHE")
  check=$(printf '%q ' "${mmjax[@]}" doctor "$CONFIG" --workdir "$WORKDIR" \
    --topology "$TOPOLOGY" "${OVERRIDES[@]}")
  run=$(printf '%q ' "${mmjax[@]}" launch local "$CONFIG" --workdir "$WORKDIR" \
    --topology "$TOPOLOGY" --retries "$RETRIES" --restarts 1000 "${kept[@]}" -- "${OVERRIDES[@]}")
  run=$(printf '%q' "$check && $run; echo \$? > code")
  on "$1" all "cd $folder; \
if [ -f pid ] && kill -0 \$(cat pid); then echo 'a run is alive here: stop it first' >&2; exit 76; \
fi; rm -f code; nohup bash -c $run > log 2>&1 < /dev/null & echo \$! > pid"
}

stop() {
  on "$1" all "cd $folder; pkill -TERM -P \$(cat pid); tail --pid \$(cat pid) -f /dev/null"
}

# The log of the first host until the run has ended; its exit code.
follow() {
  on "${nodes[0]}" 0 "cd $folder; tail -n +1 --pid \$(cat pid) -F log; exit \$(cat code)"
}

# As follow, again when the connection was lost.
follow_to_the_end() {
  local code
  while true; do
    code=0
    follow || code=$?
    ((code == 255)) || return "$code" # of ssh
    ! taken_away || return 69
    say "the connection was lost; looking again"
    sleep "$POLL"
  done
}

# Only what gcloud says counts: when it says nothing, a run may be alive there.
taken_away() {
  local now
  now=$(state) && [[ $now == FAILED || $now == SUSPEND* ]]
}

run() { wait_until_active && everywhere install && everywhere start && follow_to_the_end; }

train() {
  local code
  while true; do
    create
    code=0
    run || code=$?
    if ((code == 0 || SPOT == 0)) || ! taken_away; then return "$code"; fi
    say "spot capacity was taken away, or did not come; asking again"
    delete
  done
}

main() {
  archive=$(dirname "${BASH_SOURCE[0]}")/$folder.tar.gz
  case ${1:-train} in
    train)
      tar --create --gzip --file "$archive" --exclude __pycache__ "${PACKED[@]}"
      train
      ;;
    resume) everywhere start && follow_to_the_end ;;
    stop) everywhere stop ;;
    delete) delete ;;
    *)
      say "$1: there is train, resume, stop, delete"
      return 2
      ;;
  esac
}
