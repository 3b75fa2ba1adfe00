"""Several hosts on one machine: network namespaces behind a switch with latency and bandwidth.

``python -m lapse.bench.hosts`` runs a command under `mpirun` on such hosts; `network.Network` is for programs. Each
host is a network namespace with a device of its own; all of them share the machine's memory, files and cores. MPI uses
TCP between them, and a program that asks MPI which ranks share a host behaves as between hosts.

**Time dilation.** Few cores cannot compute for many hosts. Let computing take D times its CPU time (``--slow-down`` of
the applications), and the network be D times slower: D times the delay and TCP's time-outs, 1/D of the rate, and D
times the server's own sleeps and intervals (``--dilation``). Then everything keeps its proportions, and the run shows
how the program would scale on hosts with cores of their own (Gupta et al., *To Infinity and Beyond: Time-Warped Network
Emulation*, NSDI 2006). The CPU time of messages is not stretched: choose D so large that the machine stays half idle.
"""
