#!/usr/bin/env bash
# One experiment on all hosts of a TPU slice.
#
#   TPU=pod ZONE=us-central2-b RUN_DIR=/shared/runs/resnet experiments/launch/tpu_vm.sh \
#     supervised.cifar10_resnet20 --mesh data=32
#
# Before that, on every host (gcloud compute tpus tpu-vm ssh --worker=all): this repository in
# ~/paradigms, installed with '.[experiments,tpu]', and a file system that all hosts share at
# RUN_DIR. A run that was asked to stop, or has lost a host, leaves with status 75 (134 where jax ends
# it): the same command with the same run directory resumes, here after a pause, or given by hand.
set -euo pipefail

experiment=$1
shift
printf -v arguments ' %q' --run-dir "$RUN_DIR" "$@"
command="cd paradigms && JAX_COORDINATOR_ADDRESS=auto python3 -m experiments.$experiment$arguments"
while true; do
  status=0
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$command" ||
    status=$?
  if [ "$status" -ne 75 ] && [ "$status" -ne 134 ]; then
    exit "$status"
  fi
  sleep 30
done
