"""Applications of Lapse: programs for ``python -m lapse.apps.<name>``.

Each one uses the public API (``import lapse``) and, if it has a kernel of its own, the C-level interface
(``cimport lapse``). What they have in common is in `_shared`; `simple` is the smallest of them.
"""
