"""The command line: parse, call, print. Importing it imports neither torch nor transformers: --help is quick."""

from patchscopes.cli.main import main

__all__ = ["main"]
