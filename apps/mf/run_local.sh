#!/bin/sh
# Factorize a matrix on this machine: run_local.sh RANKS [options of lapse.apps.mf]
set -eu
ranks=${1:?"usage: $0 RANKS [options]"}
shift
exec mpirun -n "$ranks" "${PYTHON:-python}" -m lapse.apps.mf "$@"
