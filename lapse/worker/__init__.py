"""Floor 4. What one worker thread may ask for, from Python and from kernels in Cython."""
