import json
from pathlib import Path

import pytest
from lightning.pytorch import seed_everything

from datamodules import Digits
from recipes import SimCLR
from recipes.nn import ConvNet
from tests.callbacks.two_processes import evaluate, evaluate_and_gather
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process measured is in its folder ``one``, what two measured in ``two``."""
    folder = tmp_path_factory.mktemp("callbacks")
    for name in ("one", "two"):
        (folder / name).mkdir()
    seed_everything(1, verbose=False)
    trainer = quiet_trainer(max_steps=3, default_root_dir=folder, limit_val_batches=0)
    trainer.fit(SimCLR(ConvNet((8, 16)), scheduler=None), Digits())
    trainer.save_checkpoint(folder / "checkpoint.ckpt")
    run(evaluate, folder / "one", 1)
    run(evaluate_and_gather, folder / "two", processes=2)
    return folder


@pytest.mark.slow
def test_uneven_and_empty_shards_of_two_processes_join_in_order_without_repeats(folder: Path) -> None:
    expected = [
        [[[float(i), 10.0 * i] for i in indices], [i % 3 for i in indices], indices]
        for indices in ([0, 1, 2, 3, 4, 6], [0, 1, 5])
    ]
    for rank in (0, 1):
        assert json.loads((folder / "two" / f"gather{rank}.json").read_text()) == expected


def test_two_processes_measure_what_one_measures(folder: Path) -> None:
    one = json.loads((folder / "one" / "metrics0.json").read_text())
    for rank in (0, 1):
        two = json.loads((folder / "two" / f"metrics{rank}.json").read_text())
        assert two == pytest.approx(one, abs=1e-4)
    assert {"val/knn", "val/linear", "val/feature_std", "val/effective_rank"} <= one.keys()
    assert {"test/linear_5_per_class", "test/random_encoder/knn", "test/raw_pixels/knn_1_per_class"} <= one.keys()
    reports = [json.loads((folder / name / "evaluation.json").read_text()) for name in ("one", "two")]
    assert [report["protocol"].pop("devices") for report in reports] == [1, 2]
    assert reports[0]["protocol"] == reports[1]["protocol"]
