"""Applications of Lapse: programs for ``python -m lapse.apps.<name>``.

Each one stands on the public API (``import lapse``) and, where it has a kernel of its own, on the
C-level door (``cimport lapse``); nothing here reaches below these two.
"""
