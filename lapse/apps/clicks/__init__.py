"""Sparse logistic regression on clicks, with its weights in a Lapse server.

The path of an example through the modules::

    data ─ keys, clicks ─► _kernel ─ pull, push, localize ─► server
    (placement counts)     (train drives it, block by block)
                           weights.npy ◄─ weights ─ server
"""
