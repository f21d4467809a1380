"""One module a paper, ``pNN_slug``, each ending in its ``STUDY``."""
