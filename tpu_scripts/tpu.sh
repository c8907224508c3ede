#!/usr/bin/env bash
# One TPU slice from creation to deletion, with gcloud. Every word is printed by --dry-run and nothing run.
#
#   tpu_scripts/tpu.sh [--dry-run] create      ask for the slice (queued, spot unless SPOT=0)
#   tpu_scripts/tpu.sh [--dry-run] wait        until it is there
#   tpu_scripts/tpu.sh [--dry-run] setup       copy this repository to every worker and install it
#   tpu_scripts/tpu.sh [--dry-run] launch CONFIG [FLAGS...]   train on all workers, detached
#   tpu_scripts/tpu.sh [--dry-run] watch       follow the first worker's log
#   tpu_scripts/tpu.sh [--dry-run] fetch DIR   copy the finished model here
#   tpu_scripts/tpu.sh [--dry-run] stop        ask the training to save and end
#   tpu_scripts/tpu.sh [--dry-run] delete      give the slice back
#
# NAME, ZONE, TYPE and VERSION name the slice; WORKDIR is a folder that all workers share
# (a mounted bucket), since every worker writes its part of a checkpoint.
set -euo pipefail

NAME=${NAME:-svdp}
ZONE=${ZONE:-us-central2-b}
TYPE=${TYPE:-v4-32}
VERSION=${VERSION:-tpu-ubuntu2204-base}
SPOT=${SPOT:-1}
WORKDIR=${WORKDIR:-/mnt/svdp/run}

fail() {
  echo "tpu.sh: $1" >&2
  exit 2
}

dry=
if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi

run() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() {
  run gcloud compute tpus "$@" --zone="$ZONE"
}

everywhere() {
  tpu tpu-vm ssh "$NAME" --worker=all --command="$1"
}

create() {
  local spot=()
  [ "$SPOT" = 1 ] && spot=(--spot)
  tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$VERSION" "${spot[@]}"
}

wait_for_it() {
  if [ -n "$dry" ]; then
    tpu queued-resources describe "$NAME" --format="value(state.state)"
    return
  fi
  local state=
  while [ "$state" != ACTIVE ]; do
    state=$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format="value(state.state)")
    echo "$(date +%T) $state"
    case $state in
      FAILED | SUSPENDED) fail "the request ended as $state; delete it and create another" ;;
      ACTIVE) ;;
      *) sleep 30 ;;
    esac
  done
}

setup() {
  local archive=/tmp/svdp_jax.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD
  tpu tpu-vm scp "$archive" "$NAME:svdp_jax.tar.gz" --worker=all
  everywhere 'mkdir -p svdp_jax && tar -xzf svdp_jax.tar.gz -C svdp_jax && cd svdp_jax && sudo apt-get -qq install -y python3.11-venv && python3.11 -m venv ~/venv && ~/venv/bin/pip install -q -e ".[tpu]" && ~/venv/bin/python -c "import jax; print(jax.device_count())"'
}

launch() {
  [ $# -ge 1 ] || fail "launch wants a config, such as configs/tpu_v4.py"
  local flags
  flags=$(printf '%q ' --config "$@" --workdir "$WORKDIR")
  everywhere "cd svdp_jax && nohup ~/venv/bin/python -m svdp_jax.train $flags > ~/train.log 2>&1 & echo started"
}

watch_it() {
  tpu tpu-vm ssh "$NAME" --worker=0 --command="tail -n 50 -F ~/train.log"
}

fetch() {
  [ $# -eq 1 ] || fail "fetch wants a folder to copy the model to"
  run mkdir -p "$1"
  tpu tpu-vm scp --recurse "$NAME:$WORKDIR/model" "$1" --worker=0
}

stop() {
  everywhere "pkill -TERM -f svdp_jax.train"
}

delete() {
  tpu queued-resources delete "$NAME" --force --quiet
}

action=${1:-}
[ $# -gt 0 ] && shift
case $action in
  create | setup | stop | delete) "$action" ;;
  launch | fetch) "$action" "$@" ;;
  wait) wait_for_it ;;
  watch) watch_it ;;
  *)
    sed -n '2,15s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
