"""What the applications share.

============  =======================================================================================
options       types of arguments, and the options that several applications have
job           from the command line to all ranks: errors that every rank raises, one message for each
training      the course of a run: epochs, the end by a signal or by time, the ``RESULT`` line
checkpoints   what a resumed run takes over
signals       SIGINT, SIGTERM and SIGUSR2 end a training between two blocks
metrics       counters and figures: ``--metrics``, the locality report
progress      the progress bar of an epoch
plot          ``--plot``
placement     which technique manages which parameter
streams       random streams that depend on (seed, epoch, worker, purpose) only
files         files that appear when they are complete
asking        commands that ask a trained model
saved         the files of a trained model, mapped
names         the names of a trained model, in mapped files
top           the highest scores, and cosines, in blocks of a mapped matrix
stdlib        the standard library of this Python as a source of data
_pipeline     the order of events in a kernel: batches are prepared ahead of their turn
_memory       memory for kernels
_vector.h     vectors of eight floats, for the arithmetic of kernels in C
============  =======================================================================================

No module imports MPI or a compiled module before it is used, so that ``--help`` works at once and without MPI
(`placement` is the exception: only trainings import it).
"""
