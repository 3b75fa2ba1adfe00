#!/bin/sh
# Train knowledge-graph embeddings on several hosts: run_cluster.sh HOSTFILE [options of lapse.apps.kge]
#
# The hosts and their ranks stand in HOSTFILE, in the form of your MPI (see hostfiles/). Python with
# Lapse and the output folder must be found under the same names on all hosts; rank 0 reads the data.
set -eu
hosts=${1:?"usage: $0 HOSTFILE [options]"}
shift
case $(mpirun --version 2>&1) in
    *"Open MPI"*)  # threads of a rank may use all cores of their socket, not one
        exec mpirun --hostfile "$hosts" --bind-to none \
            "${PYTHON:-python}" -m lapse.apps.kge "$@" ;;
    *)
        ranks=$(awk '!/^ *(#|$)/ { split($1, part, ":"); n += part[2] ? part[2] : 1 } END { print n }' "$hosts")
        exec mpirun -f "$hosts" -n "$ranks" "${PYTHON:-python}" -m lapse.apps.kge "$@" ;;
esac
