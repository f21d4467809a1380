"""The subcommands of ``addis``: one module each, holding one function of the module's name."""
