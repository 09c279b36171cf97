"""The ``recipes`` command."""

from recipes.cli.command import COMMANDS, OF_OUR_OWN, main

__all__ = ["COMMANDS", "OF_OUR_OWN", "main"]
