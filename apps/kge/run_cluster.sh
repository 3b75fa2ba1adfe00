#!/bin/sh
# Train knowledge-graph embeddings on several hosts: run_cluster.sh HOSTFILE [options of lapse.apps.kge]
#
# The hosts and their ranks stand in HOSTFILE, in the form of your MPI (see hostfiles/). Python with
# Lapse and the output folder must be found under the same names on all hosts; rank 0 reads the data.
exec "$(dirname "$0")/../run_cluster.sh" kge "$@"
