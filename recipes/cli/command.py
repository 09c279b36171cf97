"""``recipes``: runs a command, and reports a user's mistake in one line."""

import errno
import gc
import importlib
import multiprocessing
import os
import shutil
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import datamodules
import losses
import recipes
from recipes.base.imports import import_named, search_also, trusted_only
from recipes.callbacks import Interrupted, Signals
from recipes.cli.arguments import config_folders, prepared, taken_imports
from recipes.cli.catalogue import OVERVIEW, families, table
from recipes.cli.messages import Refused, report
from recipes.cli.peers import Peers, note_for_torchrun
from recipes.cli.quiet import quiet
from recipes.cli.run_directory import RUN_DIRECTORY, is_first, know_machine, remove_if_refused
from recipes.cli.training import Command
from recipes.errors import RunFailed, nearest

OF_LIGHTNING = ("fit", "validate", "test", "predict")
OF_OUR_OWN = ("advise", "probe", "compare", "export")  # modules of recipes.cli.commands
_OF_THE_SYSTEM = (  # errors of a disk or folder, not of the code
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EMFILE),
)
COMMANDS = (*OF_LIGHTNING, *OF_OUR_OWN, "list")


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        args: words of the command line, such as ["fit", "--config", "simclr-digits"]; None takes those of the process.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(OVERVIEW)
        return
    know_machine()
    launched = RUN_DIRECTORY in os.environ and not is_first()
    # Lightning watches the processes that it launched, and kills this run if one leaves with another code than 0
    code_of = (lambda code: 0) if launched else (lambda code: code)
    with quiet(), Signals() as signals, Peers(lambda code: _end_after_another(code_of(code), signals)) as peers:
        signals.leave_with = code_of
        try:
            _run(args, signals, peers)
        except Interrupted:
            signals.tell()
            _leave(code_of(128 + signals.number))
        except RunFailed as error:  # in all processes at once
            if is_first():
                report(str(error))
            _leave(code_of(1))
        except (Refused, Exception) as error:
            if signals.number:  # another process has left, and this one cannot go on without
                signals.tell()
                _leave(code_of(128 + signals.number))
            message = _meant_for_the_user(error)
            if not peers.name and message is None:
                raise
            code = 1 if message is None else 2
            if peers.failed(code):
                if message is None:
                    traceback.print_exception(error)
                    message = f"{type(error).__name__}: see the traceback above"
                report(message, peers.name)
                note_for_torchrun(f"{peers.name}: {message}")
            peers.wait()
            for child in signals.children():
                child.kill()  # those that had not begun to watch
            _leave(code_of(code))


def _run(args: list[str], signals: Signals, peers: Peers) -> None:
    if args[0] == "list":
        _list(args[1:])
        return
    if args[0] not in COMMANDS:
        raise ValueError(
            f"there is no command {args[0]!r}{nearest(args[0], COMMANDS)}: choose one of {', '.join(COMMANDS)}"
        )
    args, imports = taken_imports(args)
    for folder in [*config_folders(args), Path()]:
        search_also(folder)
    for name in imports:
        import_named(name)
    if args[0] in OF_OUR_OWN:
        importlib.import_module(f"recipes.cli.commands.{args[0]}").main(args[1:])
        return
    args, of_checkpoint = prepared(args, imports)
    with trusted_only() if of_checkpoint else nullcontext():
        Command(args, signals, peers)
    _leave_process_group()


def _list(args: list[str]) -> None:
    parser = ArgumentParser(
        prog="recipes list", description="Lists the recipes with their configs, and DataModules.", allow_abbrev=False
    )
    parser.add_argument("--family", help=f"show one family only: {', '.join(families())}")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None  # no wrapping for grep
    sys.stdout.write(table(parser.parse_args(args).family, width))


def _leave(code: int) -> NoReturn:
    """Ends a process whose run ended early: others of the run may have left already."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _end(code)  # the references of the traceback keep the process group alive
    raise SystemExit(code)


def _end(code: int) -> NoReturn:
    """Ends this process at once, from any thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    for child in multiprocessing.active_children():  # workers that load images
        child.kill()
    os._exit(code)


def _end_after_another(code: int, signals: Signals) -> NoReturn:
    """Ends this process because another of the run has failed."""
    remove_if_refused()
    for child in signals.children():
        child.kill()
    _end(code)


def _leave_process_group() -> None:
    """Ends the threads of gloo: one that still holds a Python object when the interpreter ends aborts the process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # they end with the last reference to the group, and the model that was wrapped has one
        torch.distributed.destroy_process_group()


def _meant_for_the_user(error: BaseException) -> str | None:
    """The message of an error that this project's code raised for the user; None for other errors, which are bugs."""
    if isinstance(error, Refused):
        return str(error)
    usual = isinstance(error, ValueError | OSError | ImportError | MemoryError | MisconfigurationException)
    return _words(error) if usual or type(error).__module__.startswith("wandb.") else None


def _words(error: BaseException) -> str | None:
    if isinstance(error, MisconfigurationException):
        return str(error)
    if type(error).__module__.startswith("wandb."):
        reason = str(error).rstrip(".")
        return f"trainer.logger is WandbLogger, which cannot start: {reason}. Or set trainer.logger.offline to true"
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        return f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror} while writing a file"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = Path(trace.tb_frame.f_code.co_filename) if trace is not None else Path()
    if any(raised_in.is_relative_to(Path(str(home.__file__)).parent) for home in (recipes, datamodules, losses)):
        return str(error)
    return _words(error.__cause__) if error.__cause__ else None  # the parser wraps what constructors raise
