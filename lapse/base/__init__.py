"""Floor 0. What every module above uses: C types, synchronisation, memory, checks of arguments."""
