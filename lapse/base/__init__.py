"""Floor 0. Used by every floor above: C types, synchronization, memory, arithmetic on values, checks of arguments."""
