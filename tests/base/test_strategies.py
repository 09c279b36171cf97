"""Strategies that split the weights are refused by name: from the command, and from Python before anything starts."""

import re

import pytest
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    StrategyRegistry,
)

from datamodules import Digits
from recipes import Supervised
from recipes.base.strategies import check_strategy, strategy_names
from recipes.cli import main
from recipes.nn import ConvNet
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SHARDED = [name for name in StrategyRegistry if name.startswith(("deepspeed", "fsdp"))]


class OwnFSDP(FSDPStrategy):
    """Lightning makes ``FSDPStrategy`` itself on GPUs only."""


class OwnParallel(ParallelStrategy):
    root_device = is_global_zero = None
    all_gather = all_reduce = barrier = broadcast = model_to_device = reduce = lambda *_, **__: None


class NeverRead(Digits):
    def setup(self, stage):
        raise AssertionError("the data was read")


def test_names_are_those_of_lightning_without_the_strategies_that_split_weights():
    assert len(SHARDED) > 5
    assert set(strategy_names()) == {"auto", *StrategyRegistry} - set(SHARDED)
    for name in strategy_names():
        check_strategy(name)


@pytest.mark.parametrize("kind", [OwnFSDP, ModelParallelStrategy, OwnParallel])
def test_a_trainer_with_such_a_strategy_is_refused_before_data_is_read(kind):
    trainer = quiet_trainer(strategy=kind(), max_steps=1)
    recipe = Supervised(ConvNet((4,)), 10)
    for run in (trainer.fit, trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(ValueError, match=rf"^strategy is {kind.__name__}: it must be ddp") as error:
            run(recipe, datamodule=NeverRead())
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [DeepSpeedStrategy, FSDPStrategy])
def test_the_classes_of_lightning_are_refused(kind):
    with pytest.raises(ValueError, match=f"strategy is {kind.__name__}"):
        check_strategy(kind)


def refused(strategy, capsys):
    """The line by which the command refuses a strategy."""
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "byol-digits", "--trainer.strategy", strategy])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("recipes: error: ")


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_stage_3", "FSDPStrategy", "ModelParallelStrategy"])
def test_the_command_refuses_it_by_name_in_one_line(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = name if name.islower() else f'{{"class_path": "lightning.pytorch.strategies.{name}"}}'
    assert refused(given, capsys).startswith(f"trainer.strategy is {name}: it must be ddp")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["ddp_fork", "ddp_notebook", "ddp_spawn"])
def test_the_command_refuses_strategies_for_notebooks(name, capsys):
    assert refused(name, capsys).startswith(f"trainer.strategy is {name}, which starts processes by ")
    given = '{"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"start_method": "fork"}}'
    assert "is DDPStrategy, which starts processes by fork, for notebooks" in refused(given, capsys)


def test_data_parallel_of_old_is_refused_with_the_names_that_are_known(capsys):
    line = refused("dp", capsys)
    assert line.startswith("trainer.strategy is dp (did you mean 'ddp'?): it must be one of auto, ddp, ")
    assert not {"fsdp", "ddp_fork", "ddp_spawn"} & {*re.findall(r"\w+", line)}


def test_the_class_of_a_strategy_is_known_by_its_name_alone(capsys):
    assert refused("ModelParallelStrategy", capsys).startswith("trainer.strategy is ModelParallelStrategy: it must be")
