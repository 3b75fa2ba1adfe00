"""Word vectors: skip-gram with negative sampling [1]_, with its parameters in a Lapse server.

The path of a word through the modules::

    corpus ─ sentences of words ─► vocabulary ─ indexes ─► _kernel ─ pull, push, localize ─► server
    (or stdlib_corpus)                                     (train drives it, block by block)
                                                           model_io ◄─ vectors ─ server

.. [1] Mikolov, Sutskever, Chen, Corrado, Dean: Distributed Representations of Words and Phrases
   and their Compositionality. NIPS 2013.
"""
