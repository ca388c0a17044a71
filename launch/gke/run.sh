#!/usr/bin/env bash
# Applies jobset.yaml, shows the log of its first pod, and ends with the exit code of the run.
# Ctrl-C leaves the log; the run goes on.
#   bash run.sh           all of it
#   bash run.sh follow    of a JobSet that is there
#   bash run.sh delete    ends the run; node pools that scale down end the costs
set -eo pipefail

# That of jobset.yaml.
NAME=mmjax
# Seconds between two looks at the JobSet.
POLL=10

here=$(dirname "${BASH_SOURCE[0]}")
pods=jobset.sigs.k8s.io/jobset-name=$NAME
first=$pods,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0

# The code of a pod that failed; 69 when none is left that says one.
code_of_pods() {
  local codes code
  codes=$(kubectl get pods -l "$pods" -o \
    'jsonpath={range .items[*]}{.status.containerStatuses[0].state.terminated.exitCode}{"\n"}{end}')
  for code in $codes; do
    ((code == 0)) || return "$code"
  done
  return 69
}

follow() {
  local state since=''
  while true; do
    # Until the pod has started there is no log; after a restart it is that of another pod.
    kubectl logs --follow ${since:+"$since"} -l "$first" --tail=-1 2> /dev/null || true
    since=--since=1s
    state=$(kubectl get jobset "$NAME" -o 'jsonpath={.status.terminalState}') || return
    case $state in
      Completed) return 0 ;;
      Failed) code_of_pods || return ;;
    esac
    sleep "$POLL"
  done
}

case ${1:-train} in
  train)
    kubectl apply -f "$here/jobset.yaml"
    follow
    ;;
  follow) follow ;;
  delete) kubectl delete jobset "$NAME" ;;
  *)
    echo "launch: $1: there is train, follow, delete" >&2
    exit 2
    ;;
esac
