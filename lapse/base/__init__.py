"""Floor 0. Used by every floor above: C types, synchronisation, memory, arithmetic on values, checks of arguments."""
