"""Floor 6. Benchmarks: every figure beside a reference that is measured in the same run.

``python -m lapse bench`` runs them. A *group* is a function that yields rows, and the jobs (numbers of ranks) in
which it is called; `lapse.bench._groups` has the list and says how to add one.
"""
