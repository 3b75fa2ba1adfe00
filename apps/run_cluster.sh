#!/bin/sh
# Start an application on several hosts: run_cluster.sh APPLICATION HOSTFILE [its options]
#
# The hosts and their ranks stand in HOSTFILE, in the form of your MPI (see hostfiles/). Python with
# Lapse must be found under the same name on all hosts. Used by the scripts of the applications.
set -eu
application=${1:?"usage: $0 APPLICATION HOSTFILE [options]"}
hosts=${2:?"usage: $0 APPLICATION HOSTFILE [options]"}
shift 2
case $(mpirun --version 2>&1) in
    *"Open MPI"*)  # threads of a rank may use all cores of their socket, not one
        exec mpirun --hostfile "$hosts" --bind-to none \
            "${PYTHON:-python}" -m "lapse.apps.$application" "$@" ;;
    *)
        ranks=$(awk '!/^ *(#|$)/ { split($1, part, ":"); n += part[2] ? part[2] : 1 } END { print n }' "$hosts")
        exec mpirun -f "$hosts" -n "$ranks" "${PYTHON:-python}" -m "lapse.apps.$application" "$@" ;;
esac
