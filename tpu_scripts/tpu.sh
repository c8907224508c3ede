#!/usr/bin/env bash
# One TPU slice from creation to deletion, with gcloud. Every word is printed by --dry-run and nothing run.
#
#   tpu_scripts/tpu.sh [--dry-run] create      ask for the slice (queued, spot unless SPOT=0)
#   tpu_scripts/tpu.sh [--dry-run] wait        until it is there
#   tpu_scripts/tpu.sh [--dry-run] setup       copy this repository to every worker and install it
#   tpu_scripts/tpu.sh [--dry-run] launch CONFIG [FLAGS...]   train on all workers, detached
#   tpu_scripts/tpu.sh [--dry-run] supervise CONFIG [FLAGS...]   all of the above, and again whenever a spot
#                                              slice is taken away, until the training is done
#   tpu_scripts/tpu.sh [--dry-run] watch       follow the first worker's log
#   tpu_scripts/tpu.sh [--dry-run] fetch DIR   copy the finished model here
#   tpu_scripts/tpu.sh [--dry-run] stop        ask the training to save and end
#   tpu_scripts/tpu.sh [--dry-run] delete      give the slice back
#
# NAME, ZONE, TYPE and VERSION name the slice; WORKDIR is a folder that all workers share
# (Filestore, say; not a bucket mounted with gcsfuse, which cannot rename folders), since every worker
# writes its part of a checkpoint. INPUTS are folders here that setup copies beside the repository.
set -euo pipefail

NAME=${NAME:-svdp}
ZONE=${ZONE:-us-central2-b}
TYPE=${TYPE:-v4-32}
VERSION=${VERSION:-tpu-ubuntu2204-base}
SPOT=${SPOT:-1}
WORKDIR=${WORKDIR:-/mnt/svdp/run}
INPUTS=${INPUTS:-weights prompts records}
PAUSE=${PAUSE:-30} # seconds between looks

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
      *) sleep "$PAUSE" ;;
    esac
  done
}

setup() {
  local archive=/tmp/svdp_jax.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD
  tpu tpu-vm scp "$archive" "$NAME:svdp_jax.tar.gz" --worker=all
  everywhere 'mkdir -p svdp_jax && tar -xzf svdp_jax.tar.gz -C svdp_jax && cd svdp_jax && sudo apt-get -qq install -y python3.11-venv && python3.11 -m venv ~/venv && ~/venv/bin/pip install -q -e ".[tpu]" && ~/venv/bin/python -c "import jax; print(jax.local_device_count())"'
  local folder
  for folder in $INPUTS; do
    [ -n "$dry" ] || [ -d "$folder" ] || fail "there is no folder $folder here; make it as the config's head says, or set INPUTS"
    tpu tpu-vm scp --recurse "$folder" "$NAME:svdp_jax/" --worker=all
  done
}

launch() {
  [ $# -ge 1 ] || fail "launch wants a config, such as configs/tpu_v4.py"
  local flags
  flags=$(printf '%q ' --config "$@" --workdir "$WORKDIR")
  # Nothing of the training may hold the session's output open, or ssh would wait for its end.
  everywhere "cd svdp_jax && rm -f ~/train.rc && export JAX_COMPILATION_CACHE_DIR=~/jax_cache && { nohup sh -c '~/venv/bin/python -m svdp_jax.train $flags; echo \$? > ~/train.rc' > ~/train.log 2>&1 < /dev/null & } && echo started"
}

state() {
  gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format="value(state.state)" 2> /dev/null || true
}

# The training's exit status, once it has one; nothing where it runs, or the slice is not there to ask.
ended() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=0 --command="cat ~/train.rc 2> /dev/null || true" 2> /dev/null || true
}

supervise() {
  [ $# -ge 1 ] || fail "supervise wants a config, such as configs/tpu_v4.py"
  local rc now
  if [ -n "$dry" ]; then
    create && wait_for_it && setup && launch "$@"
    return
  fi
  while :; do
    now=$(state)
    if [ "$now" != ACTIVE ]; then
      [ -z "$now" ] || delete
      create
      wait_for_it
      setup
      launch "$@"
    fi
    rc=$(ended)
    case $rc in
      "") sleep "$PAUSE" ;;
      0)
        echo "the training is done; fetch the model, then delete the slice"
        return
        ;;
      *) fail "the training ended with $rc; see watch" ;;
    esac
  done
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
  everywhere "pkill -TERM -f '^[^ ]*python -m svdp_jax.train'" # not the shell around it, which notes how it ended
}

delete() {
  tpu queued-resources delete "$NAME" --force --quiet
}

action=${1:-}
[ $# -gt 0 ] && shift
case $action in
  create | setup | stop | delete) "$action" ;;
  launch | fetch | supervise) "$action" "$@" ;;
  wait) wait_for_it ;;
  watch) watch_it ;;
  *)
    sed -n '2,18s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
