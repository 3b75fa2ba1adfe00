"""Floor 8. Benchmarks: every figure is measured together with a reference in the same run.

``python -m lapse bench`` runs them. A *group* is a function that yields rows, with the jobs (numbers of ranks) in
which it is called; `lapse.bench._groups` has the list and explains how to add one.
"""
