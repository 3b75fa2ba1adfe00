#!/bin/sh
# Train word vectors on this machine: run_local.sh RANKS [options of lapse.apps.word2vec]
set -eu
ranks=${1:?"usage: $0 RANKS [options]"}
shift
exec mpirun -n "$ranks" "${PYTHON:-python}" -m lapse.apps.word2vec "$@"
