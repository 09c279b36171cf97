"""``recipes fit|validate|test|predict``: a LightningCLI with run directories and the callbacks that every run has."""

import inspect
import re
import sys
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from datamodules import ImageDataModule
from recipes.base.checkpoint import classes_of, reading_of, saved_run
from recipes.base.imports import check_classes
from recipes.base.kinds import check_nulls
from recipes.base.loaded import RUN_DIRECTORY
from recipes.base.recipe import AnyRecipe, Recipe
from recipes.base.together import Together
from recipes.callbacks import (
    BestCheckpoint,
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
    Signals,
    StopOnSignal,
    Summary,
)
from recipes.cli.arguments import IMPORT_HELP
from recipes.cli.changes import changes, told
from recipes.cli.classes import class_changes, own_defaults
from recipes.cli.fit_words import how_it_ended, words_of_fit
from recipes.cli.messages import Refused, missing_package, one_line
from recipes.cli.options import check_options, trainer_errors, with_homes
from recipes.cli.peers import Peers
from recipes.cli.run_directory import continues_elsewhere, is_first, new_directory, nothing_left_if_refused
from recipes.cli.slurm import earlier_checkpoint, job, requeue, requeue_signal
from recipes.distillation.teacher import teacher_from
from recipes.nn import CrossDeviceBatchNorm

CALLBACKS = {  # those that every run has, by the word that their options begin with
    "checkpoint": Checkpoint,
    "probe": RepresentationProbe,
    "collapse": CollapseMonitor,
    "health": Health,
    "pictures": Pictures,
    "report": ClassReport,
    "distillation": DistillationReport,
    "continual": ContinualReport,
    "prediction": PredictionFile,
}


class Parser(LightningArgumentParser):
    """Parser whose errors are one line, with a suggestion for a misspelt word, and which takes no abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the process with one line and code 2."""
        if not self.exit_on_error:  # a parser inside the parser: the outer one will say it
            super().error(message, ex)
        raise Refused(one_line(message, self))


class Command(LightningCLI):
    """``recipes fit|validate|test|predict``: parses, instantiates and runs.

    Args:
        args: of the command, with configs already resolved to paths.
        signals: those that stop the command.
        peers: the other processes of the run.
    """

    def __init__(self, args: list[str], signals: Signals, peers: Peers) -> None:
        self.asked = args[0]
        self.signals = signals
        self.peers = peers
        with nothing_left_if_refused():
            super().__init__(
                AnyRecipe,
                ImageDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                seed_everything_default=0,
                save_config_callback=None,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,  # checkpoints hold the configuration as text, and nothing pickled
                parser_class=Parser,
                args=args,
            )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Returns only the subcommand that runs: building the parsers of all four takes most of a second."""
        return {self.asked: LightningCLI.subcommands()[self.asked]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run directory and the callbacks that every run has."""
        run = parser.add_argument_group("Options of the run")
        about = "name of the run, the folder of its directory in --runs; by default the name of the config"
        run.add_argument("--name", type=str | None, help=about)
        run.add_argument("--runs", type=str, default="runs", help="folder for the directories of all runs")
        about = "backend of torch.compile for the encoder, such as inductor; if null, the encoder is not compiled"
        run.add_argument("--compile", type=str | None, help=about)
        about = "precision of float32 matrix products on GPUs, also in losses and measurements: highest; high, which "
        about += "rounds factors to TensorFloat32 (10 bits) and is faster; medium, which rounds them to bfloat16; null "
        about += "for that of torch, highest"
        precisions = Literal["highest", "high", "medium"] | None
        run.add_argument("--float32_matmul_precision", type=precisions, default=None, help=about)
        run.add_argument("--import", type=str | list[str] | None, help=IMPORT_HELP)
        if self.asked != "fit":
            about = "whether to accept a network that is not trained, where --ckpt_path is not given"
            run.add_argument("--untrained", type=bool, default=False, help=about)
        if self.asked == "predict":
            about = "task of the images, from 1, for a network that was trained in the scenario task and images that "
            about += "come without a task; if null, predicts the classes of all tasks"
            run.add_argument("--task", type=int | None, help=about)
        for key, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.set_defaults({"data": {"class_path": "datamodules.Digits"}, "trainer.log_every_n_steps": 10})
        classes = "data", "model.init_args.num_classes"
        parser.link_arguments(*classes, compute_fn=self._num_classes, apply_on="instantiate")
        tasks = "data", "model.init_args.tasks"
        parser.link_arguments(*tasks, compute_fn=self._tasks, apply_on="instantiate")

    def _num_classes(self, data: Any) -> int | None:
        """How many classes the recipe tells apart.

        They are those of the data or, if it has no labels, those of the teacher; a trained recipe has its own.
        """
        trained, _ = self._of_checkpoint()
        arguments = self.config[self.subcommand].model.get("init_args", {})
        count = getattr(data, "num_classes", None)
        if trained is not None and (self.subcommand != "fit" or not count):
            return trained
        if "num_classes" in arguments and not count:
            teacher = arguments.get("teacher")
            if teacher and (taught := teacher_from(teacher).num_classes):
                return taught
            getattr(data, "check_labelled", lambda: None)()
        return count

    def _tasks(self, data: Any) -> Any:
        """The tasks of the data; for other data, such as new images, those that the network was trained on."""
        return getattr(data, "tasks", None) or (self._of_checkpoint()[1] if self.subcommand != "fit" else None)

    def _of_checkpoint(self) -> tuple[int | None, Any]:
        checkpoint = self.config[self.subcommand].get("ckpt_path")
        return classes_of(checkpoint) if checkpoint and Path(checkpoint).is_file() else (None, None)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; the command line beats the files, and these beat the configuration in the checkpoint."""
        with own_defaults():
            self.config = with_homes(parser.parse_args(args))
        check_classes(self.config)
        check_nulls(self.config)
        config = self.config[self.asked]
        check_options(config)
        if self.asked != "fit" and not config.ckpt_path and not config.untrained:
            raise ValueError(
                f"{self.asked} has no trained network: give --ckpt_path with a run directory or a checkpoint, or "
                "--untrained true to use the network at its initialisation"
            )
        for line in class_changes(args, yaml.safe_load(self._parser(self.asked).dump(config, skip_unset=False))):
            rank_zero_info(line)

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would let the checkpoint's values beat those of the command line."""

    def instantiate_classes(self) -> None:
        """Lets the DataModule read images as the run of a checkpoint did, where its arguments leave that open."""
        try:
            super().instantiate_classes()
        except (ValueError, ImportError) as error:
            if (words := missing_package(str(error))) is None:
                raise
            raise ValueError(words) from error
        checkpoint = self.config[self.subcommand].get("ckpt_path")
        if checkpoint and Path(checkpoint).is_file():
            self.datamodule.read_as(reading_of(checkpoint))

    def before_instantiate_classes(self) -> None:
        """Chooses the run directory and sends the files of every logger there."""
        config = self.config[self.subcommand]
        if config.float32_matmul_precision is not None:
            torch.set_float32_matmul_precision(config.float32_matmul_precision)
        config.name = config.name or f"{_short(config.model)}-{_short(config.data)}".lower()
        self.text = self._parser(self.subcommand).dump(config, skip_unset=False)  # without the places of this run
        parent = Path(config.runs) / config.name
        if self.asked == "fit" and (checkpoint := earlier_checkpoint(parent, self.text)) is not None:
            config.ckpt_path = str(checkpoint)
            rank_zero_info(f"job {job()} was restarted: the run resumes from {checkpoint}")
        self.changed: dict[str, str] = {}
        resumed = self.subcommand == "fit" and Path(config.ckpt_path or "").is_file()
        then, ids = saved_run(config.ckpt_path) if resumed else ({}, [])
        if then:
            self.changed = changes(then, yaml.safe_load(self.text))
            rank_zero_info(told(self.changed))
        self.directory = new_directory(parent)
        if resumed and (note := continues_elsewhere(Path(config.ckpt_path), self.directory)):
            rank_zero_info(note)
        for each in _listed(config.trainer.logger):
            arguments = getattr(each, "init_args", {})
            if "save_dir" in arguments and arguments["save_dir"] in (None, "."):
                arguments["save_dir"] = str(self.directory)
            if ids and getattr(each, "class_path", "").endswith(".WandbLogger"):
                given = arguments["id"] or arguments["version"]
                arguments["id"] = given or ids.pop(0)
        config.trainer = _with_directory(config.trainer, str(self.directory))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds what every run has: metrics.csv, config.yaml and checkpoints in its directory, and global batch norm."""
        trainer = self._get(self.config_init, "trainer")
        if trainer["logger"] is not False:
            others = [] if trainer["logger"] is True else _listed(trainer["logger"])
            # every row at once, so that a run that is killed keeps those before its last checkpoint
            metrics = CSVLogger(self.directory, name="", version="", flush_logs_every_n_steps=1)
            kwargs["logger"] = [metrics, *others]
        self._get(self.config_init, "checkpoint").dirpath = str(self.directory / "checkpoints")
        directory = RunDirectory(self.directory, self.text, self._model_config(self.text))
        compile_with = self._get(self.config_init, "compile")
        compiled = [CompileEncoder(compile_with)] if compile_with else []
        summary = []
        if self._has_summary(trainer):
            summary, kwargs["enable_model_summary"] = [Summary()], False  # Lightning would add its own
        self.best = BestCheckpoint(self.directory / "checkpoints")
        kwargs["callbacks"] = [*_listed(trainer["callbacks"]), *compiled, *summary, directory, self.best]
        plugins = _listed(trainer["plugins"])
        if not trainer["sync_batchnorm"] and not any(isinstance(plugin, LayerSync) for plugin in plugins):
            kwargs["plugins"] = [*plugins, CrossDeviceBatchNorm()]
        kwargs["default_root_dir"] = trainer["default_root_dir"] or str(self.directory)
        with trainer_errors():
            made = super().instantiate_trainer(**kwargs)
        callbacks: list[Any] = made.callbacks  # type: ignore[attr-defined]
        callbacks.append(StopOnSignal(self.signals))  # the last, so that all others have seen the step
        self.peers.watch(made)
        if (number := requeue_signal(made)) is not None:
            self.signals.also(number, lambda: requeue() if made.is_global_zero else None)
        launcher = made.strategy.launcher  # not the Trainer, whose model keeps the process group alive
        self.signals.children = lambda: getattr(launcher, "procs", [])
        return made

    def _has_summary(self, trainer: Any) -> bool:
        """Whether to print our summary: not if the user switched it off, or chose a summary callback."""
        wanted = trainer["enable_model_summary"] is not False and not trainer["barebones"]
        return wanted and not any(isinstance(callback, ModelSummary) for callback in _listed(trainer["callbacks"]))

    def _model_config(self, text: str) -> str:
        model = yaml.safe_load(text)["model"]
        arguments = inspect.signature(type(self.model).__init__).parameters
        if "num_classes" in arguments:
            recipe: Any = self.model
            model["init_args"]["num_classes"] = self.datamodule.num_classes or recipe.head.out_features
        if "tasks" in arguments:
            tasks: Any = self.model.tasks
            model["init_args"]["tasks"] = {"sizes": list(tasks.sizes), "scenario": tasks.scenario}
        return yaml.safe_dump(model)

    def before_predict(self) -> None:
        """States the task of the images."""
        recipe: Any = self.model
        recipe.of_task(self.config[self.subcommand].task)

    def fit(self, model: Recipe, **options: Any) -> None:
        """Trains; a checkpoint that does not fit is refused with the options that have changed."""
        with words_of_fit(self.trainer, self.changed, options.get("ckpt_path")):
            self.trainer.fit(model, **options)

    def test(self, model: Recipe, datamodule: ImageDataModule, **options: Any) -> None:
        """Prints what the recipe itself measures; the table of the probe stands above it."""
        results = self.trainer.test(model, datamodule=datamodule, **{**options, "verbose": False})
        metrics = results[0] if results else {}  # trainer.limit_test_batches may be 0
        own = {name: value for name, value in metrics.items() if not re.search("knn|linear", name)}
        if is_first():
            sys.stdout.write("".join(f"{name}: {value:.4f}\n" for name, value in own.items()))
            sys.stdout.write(f"run directory: {self.directory}\n")

    def after_fit(self) -> None:
        """Measures the trained encoder on the test images."""
        Together(self.trainer).wait()  # the first process may still draw
        if self.datamodule.splits.test is None:
            rank_zero_info(f"there are no test images to measure on; run directory: {self.directory}")
        elif self.trainer.state.finished:
            if not self.trainer.global_step:
                rank_zero_warn("nothing was trained: the numbers are those of the network at its initialisation")
            else:
                if self.best.file is not None:
                    states = self.best.load_best(self.model)
                    self._get(self.config_init, "probe").weights_of(self.best.file, states)
                rank_zero_info(how_it_ended(self.trainer, self.best.file))
            self.test(self.model, self.datamodule)


def _with_directory(config: Any, directory: str) -> Any:
    """A configuration in which ``RUN_DIRECTORY`` is replaced by the directory of the run."""
    if isinstance(config, Namespace):
        return Namespace({key: _with_directory(value, directory) for key, value in vars(config).items()})
    if isinstance(config, list):
        return [_with_directory(value, directory) for value in config]
    return directory if config == RUN_DIRECTORY else config


def _listed(given: Any) -> list[Any]:
    """What the Trainer takes as none, one or a list of them."""
    return given if isinstance(given, list) else [] if given is None else [given]


def _short(config: Any) -> str:
    return config.class_path.rpartition(".")[2]
