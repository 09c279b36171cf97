"""The ``recipes`` command: a LightningCLI with bare config names, run directories and errors for people."""

import gc
import importlib
import inspect
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import datamodules
import losses
import recipes
from datamodules import ImageDataModule
from recipes.callbacks import (
    Checkpoint,
    ClassReport,
    CollapseMonitor,
    CompileEncoder,
    ContinualReport,
    DistillationReport,
    Health,
    Pictures,
    PredictionFile,
    RepresentationProbe,
    RunDirectory,
)
from recipes.catalogue import CONFIGS, OVERVIEW, config_names, nearest, table
from recipes.checkpoint import checkpoint_path, config_of, num_classes_of, without_weights
from recipes.messages import one_line
from recipes.nn import CrossDeviceBatchNorm
from recipes.recipe import AnyRecipe, Recipe

OF_LIGHTNING = ("fit", "validate", "test", "predict")
OF_OUR_OWN = ("advise", "probe", "compare", "export")  # modules of recipes.commands
COMMANDS = (*OF_LIGHTNING, *OF_OUR_OWN, "list")
RUN_DIRECTORY = "RECIPES_RUN_DIRECTORY"


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        args: of the command, such as ["fit", "--config", "simclr-digits"]; None takes those of the process.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(OVERVIEW)
        return
    if args[0] == "list":
        sys.stdout.write(table())
        return
    _be_quiet()
    try:
        if args[0] not in COMMANDS:
            raise ValueError(f"no command {args[0]!r}{nearest(args[0], COMMANDS)}; there are {', '.join(COMMANDS)}")
        if args[0] in OF_OUR_OWN:
            importlib.import_module(f"recipes.commands.{args[0]}").main(args[1:])
        else:
            Command(_prepare(args))
            _leave_process_group()
    except (ValueError, OSError, ImportError, MisconfigurationException) as error:
        if (message := _meant_for_the_user(error)) is None:
            raise
        _fail(message)


class Parser(LightningArgumentParser):
    """Says what is wrong in one line, and which word was probably meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one line and ends the process with code 2."""
        if not self.exit_on_error:  # a parser inside the parser: the outer one will say it
            super().error(message, ex)
        _fail(one_line(message, self))


class Command(LightningCLI):
    """``recipes fit|validate|test|predict``: parses, instantiates and runs.

    Args:
        args: of the command, with configs already resolved to paths.
    """

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            AnyRecipe,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # checkpoints hold the configuration as text, not as pickled arguments
            parser_class=Parser,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run directory and the callbacks that every run has."""
        parser.add_argument("--name", type=str | None, help="of the run; by default that of the config")
        parser.add_argument("--runs", type=str, default="runs", help="folder in which every run makes its directory")
        about = "backend of torch.compile for the encoder, such as inductor; null does not compile"
        parser.add_argument("--compile", type=str | None, help=about)
        for key, callback in {
            "checkpoint": Checkpoint,
            "probe": RepresentationProbe,
            "collapse": CollapseMonitor,
            "health": Health,
            "pictures": Pictures,
            "report": ClassReport,
            "distillation": DistillationReport,
            "continual": ContinualReport,
            "prediction": PredictionFile,
        }.items():
            parser.add_lightning_class_args(callback, key)
        parser.set_defaults({"data": {"class_path": "datamodules.Digits"}, "trainer.log_every_n_steps": 10})
        classes = "data.num_classes", "model.init_args.num_classes"
        parser.link_arguments(*classes, compute_fn=self._num_classes, apply_on="instantiate")
        tasks = "data", "model.init_args.tasks"
        parser.link_arguments(*tasks, compute_fn=lambda data: getattr(data, "tasks", None), apply_on="instantiate")

    def _num_classes(self, of_data: int) -> int:
        """How many classes the recipe tells apart: those of the data, but of a trained one those it was trained on."""
        trained = self.subcommand != "fit" and self.config[self.subcommand].get("ckpt_path")
        of_checkpoint = num_classes_of(trained) if trained and Path(trained).is_file() else None
        return of_data if of_checkpoint is None else of_checkpoint

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; the command line beats the files, and these beat the configuration in the checkpoint."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would let the checkpoint's values beat those of the command line."""

    def before_instantiate_classes(self) -> None:
        """Chooses the run directory and sends the files of every logger there."""
        config = self.config[self.subcommand]
        config.name = config.name or f"{_short(config.model)}-{_short(config.data)}".lower()
        self.directory = _new_directory(Path(config.runs) / config.name)
        logger = config.trainer.logger
        for each in logger if isinstance(logger, list) else [logger]:
            arguments = getattr(each, "init_args", {})
            if "save_dir" in arguments and arguments["save_dir"] in (None, "."):
                arguments["save_dir"] = str(self.directory)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds what every run has: metrics.csv, config.yaml and checkpoints in its directory, and global batch norm."""
        trainer = self._get(self.config_init, "trainer")
        if trainer["logger"] is not False:
            others = [] if trainer["logger"] is True else _listed(trainer["logger"])
            # every row at once, so that a run that is killed keeps those before its last checkpoint
            metrics = CSVLogger(self.directory, name="", version="", flush_logs_every_n_steps=1)
            kwargs["logger"] = [metrics, *others]
        self._get(self.config_init, "checkpoint").dirpath = str(self.directory / "checkpoints")
        text = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_unset=False)
        directory = RunDirectory(self.directory, text, self._model_config(text))
        compile_with = self._get(self.config_init, "compile")
        compiled = [CompileEncoder(compile_with)] if compile_with else []
        kwargs["callbacks"] = [*_listed(trainer["callbacks"]), *compiled, directory]
        plugins = _listed(trainer["plugins"])
        if not trainer["sync_batchnorm"] and not any(isinstance(plugin, LayerSync) for plugin in plugins):
            kwargs["plugins"] = [*plugins, CrossDeviceBatchNorm()]
        kwargs["default_root_dir"] = trainer["default_root_dir"] or str(self.directory)
        return super().instantiate_trainer(**kwargs)

    def _model_config(self, text: str) -> str:
        model = yaml.safe_load(text)["model"]
        arguments = inspect.signature(type(self.model).__init__).parameters
        if "num_classes" in arguments:
            model["init_args"]["num_classes"] = self.datamodule.num_classes
        if "tasks" in arguments:
            tasks: Any = self.model.tasks
            model["init_args"]["tasks"] = {"sizes": list(tasks.sizes), "scenario": tasks.scenario}
        return yaml.safe_dump(model)

    def test(self, model: Recipe, datamodule: ImageDataModule, **options: Any) -> None:
        """Prints what the recipe itself measures; the table of the probe stands above it."""
        results = self.trainer.test(model, datamodule=datamodule, **{**options, "verbose": False})
        metrics = results[0] if results else {}  # trainer.limit_test_batches may be 0
        own = {name: value for name, value in metrics.items() if not re.search("knn|linear", name)}
        if _is_first():
            sys.stdout.write("".join(f"{name}: {value:.4f}\n" for name, value in own.items()))
            sys.stdout.write(f"run directory: {self.directory}\n")

    def after_fit(self) -> None:
        """Measures the trained encoder on the test images."""
        if self.datamodule.splits.test is None:
            rank_zero_info(f"there are no test images to measure on; run directory: {self.directory}")
        elif self.trainer.state.finished:
            self.test(self.model, self.datamodule)


def _prepare(args: list[str]) -> list[str]:
    """Resolves config names and run directories, and puts a checkpoint's own configuration before the options."""
    args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith(_PATH_OPTIONS) else [arg])]
    named = any(re.match(r"(-c|--config|--model)($|=)", arg) for arg in args)
    first: list[str] = []
    for place in range(1, len(args)):
        option, value = args[place - 1 : place + 1]
        if option in ("-c", "--config"):
            args[place] = str(_config_path(value))
            first = first or ["--name", Path(value).stem]
        elif option == "--ckpt_path" and value not in ("last", "best", "hpc"):
            args[place] = str(checkpoint_path(value))
            if not named:
                config = config_of(args[place])
                if args[0] != "fit":  # the weights of the checkpoint are all that counts
                    config["model"] = without_weights(config["model"])
                first = ["--config", yaml.safe_dump(config)]
    if args[1:2] != ["--help"] and args[-1] == "--help" and "--model" in args[:-2]:
        return [args[0], "--model.help", args[args.index("--model") + 1]]
    return [args[0], *first, *args[1:]]


_PATH_OPTIONS = ("-c=", "--config=", "--ckpt_path=")


def _config_path(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    packaged = CONFIGS / f"{name}.yaml"
    if packaged.is_file():
        return packaged
    raise FileNotFoundError(
        f"no config {name!r}{nearest(name, config_names())}: give a name from 'recipes list' or a path to a YAML file"
    )


def _new_directory(parent: Path) -> Path:
    """A directory for this run alone, the same in the processes that this one starts for further devices.

    Processes that torchrun or SLURM started learn of it from the first when they write: loggers and checkpoints ask it.
    """
    if not _is_first() and RUN_DIRECTORY in os.environ:
        return Path(os.environ[RUN_DIRECTORY])
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    directory, number = parent / time, 1
    while _is_first():
        try:
            directory.mkdir(parents=True)
            break
        except FileExistsError:  # another run of this second
            number += 1
            directory = parent / f"{time}_{number}"
    os.environ[RUN_DIRECTORY] = str(directory)
    return directory


def _is_first() -> bool:
    """Whether this is the first of the processes of a run."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _leave_process_group() -> None:
    """Ends the threads of gloo: one that still holds a Python object when the interpreter ends aborts the process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # they end with the last reference to the group, and the model that was wrapped has one
        torch.distributed.destroy_process_group()


def _listed(given: Any) -> list[Any]:
    """What the Trainer takes as none, one or a list of them."""
    return given if isinstance(given, list) else [] if given is None else [given]


def _short(config: Any) -> str:
    return config.class_path.rpartition(".")[2]


def _be_quiet() -> None:
    """Leaves out what says nothing to the reader: advertisements, and warnings about what was chosen on purpose."""
    for message in (
        r".*isinstance\(treespec, LeafSpec\)",
        ".*does not have many workers",
        ".*Total length of `list` across ranks is zero",  # data without a validation split
        r".*functional.all_gather is deprecated",  # Lightning calls it, and is pinned
        ".*The dirpath has changed",  # every run has a directory of its own
        ".*overridden `on_before_batch_transfer` in `LightningModule`",  # our DataModules have no such hook
        ".*module\\(s\\) in eval mode at the start of training",  # frozen layers, teachers
        ".*persistent_workers.*reload_dataloaders_every_n_epochs",  # the loader of a task stays the same
    ):
        warnings.filterwarnings("ignore", message)
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    log.addFilter(lambda record: "Tip:" not in record.getMessage())


def _meant_for_the_user(error: BaseException) -> str | None:
    """What our own code raised to say what to change, for which a traceback would only be in the way."""
    if isinstance(error, MisconfigurationException):
        return str(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = Path(trace.tb_frame.f_code.co_filename) if trace is not None else Path()
    if any(raised_in.is_relative_to(Path(str(home.__file__)).parent) for home in (recipes, datamodules, losses)):
        return str(error)
    return _meant_for_the_user(error.__cause__) if error.__cause__ else None  # the parser wraps what constructors raise


def _fail(message: str) -> NoReturn:
    if _is_first():
        sys.stderr.write(f"recipes: error: {' '.join(message.split())}\n")
    raise SystemExit(2)
