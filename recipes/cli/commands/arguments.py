"""Parsing of arguments, shared by the commands that are not subcommands of Lightning's command line."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from recipes.base.imports import check_classes
from recipes.base.kinds import check_nulls
from recipes.cli.arguments import IMPORT_HELP
from recipes.cli.messages import one_line
from recipes.cli.options import check_seed, with_homes


@contextmanager
def parsed(parser: ArgumentParser, args: list[str]) -> Iterator[Namespace]:
    """Parses arguments, and silences Lightning's messages while the command runs.

    Args:
        parser: parser with ``exit_on_error=False``.
        args: arguments of the command.

    Raises:
        ValueError: if an argument is wrong, in one line.
    """
    parser.add_argument("--import", help=IMPORT_HELP)  # taken out of the arguments before: here for the help
    parser.allow_abbrev = False
    try:
        options = with_homes(parser.parse_args(args))
        check_classes(options)
        check_nulls(options)
        check_seed(options.get("seed"))
    except ArgumentError as error:
        raise ValueError(one_line(str(error), parser)) from None
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.WARNING)  # otherwise each Trainer lists the devices
    try:
        yield options
    finally:
        log.setLevel(level)
