"""The command line: what is typed -> the functions of run/. Nothing here imports JAX before a command needs it."""

from tljax.cli.main import main

__all__ = ["main"]
