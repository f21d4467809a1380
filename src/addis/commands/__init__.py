"""The subcommands of ``addis``: each module holds one function of its own name.

A module imports at its top only what is quick to import, so that ``addis --help`` answers at once.
"""
