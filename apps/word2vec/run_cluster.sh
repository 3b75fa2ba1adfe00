#!/bin/sh
# Train word vectors on several hosts: run_cluster.sh HOSTFILE [options of lapse.apps.word2vec]
#
# The hosts and their ranks stand in HOSTFILE, in the form of your MPI (see hostfiles/). Python with
# Lapse, the corpus and the output folder must be found under the same names on all hosts.
exec "$(dirname "$0")/../run_cluster.sh" word2vec "$@"
