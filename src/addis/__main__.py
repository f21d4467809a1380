"""Runs the command as ``python -m addis``."""

from addis.cli import main

if __name__ == "__main__":
    main()
