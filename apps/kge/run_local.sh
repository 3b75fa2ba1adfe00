#!/bin/sh
# Train knowledge-graph embeddings on this machine: run_local.sh RANKS [options of lapse.apps.kge]
set -eu
ranks=${1:?"usage: $0 RANKS [options]"}
shift
exec mpirun -n "$ranks" "${PYTHON:-python}" -m lapse.apps.kge "$@"
