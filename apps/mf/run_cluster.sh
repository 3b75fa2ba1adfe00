#!/bin/sh
# Factorize a matrix on several hosts: run_cluster.sh HOSTFILE [options of lapse.apps.mf]
#
# The hosts and their ranks stand in HOSTFILE, in the form of your MPI (see hostfiles/). Python with
# Lapse, the ratings and the output folder must be found under the same names on all hosts.
exec "$(dirname "$0")/../run_cluster.sh" mf "$@"
