"""What cannot be monitored or logged is refused in one line that names the option, and leaves nothing behind."""

import re

import pytest

from recipes.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

RUN = [
    *("fit", "--model", "Supervised", "--model.encoder", "ConvNet", "--model.encoder.widths", "[4]"),
    *("--model.lr_batch_size", "null", "--data", "Digits", "--data.size", "8", "--trainer.max_epochs", "3"),
    *("--trainer.limit_train_batches", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.limit_test_batches", "0", "--probe.every_n_epochs", "1000"),
]
CONSTANT = ["--model.scheduler", "null"]
PLATEAU = ["--model.scheduler", "lightning.pytorch.cli.ReduceLROnPlateau", "--model.scheduler.monitor"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


NOT_MEASURED = "monitor is train/los, which is not measured in this run: set it to one of .*train/loss"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([*CONSTANT, "--trainer.logger", "MLFlowLogger"], "trainer.logger is MLFlowLogger, .* Install its package"),
        (["--model.scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau"], "set model.scheduler to lightning.*moni"),
        ([*PLATEAU, "val_loss"], "ReduceLROnPlateau monitors val_loss, which is not measured .* val/loss, val/acc"),
        ([*PLATEAU, "train/los"], NOT_MEASURED),
        ([*CONSTANT, "--data.batch_size", "5000"], "batch_size is 5000"),
        ([*CONSTANT, "--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "train/los"], NOT_MEASURED),
    ],
)
def test_what_a_run_cannot_do_is_one_line_and_leaves_nothing(options, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main([*RUN, *options])
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "recipes: error: " in line]
    assert re.search(words, line)
    if "train/los" not in options:  # known after an epoch only
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_plateau_is_looked_for_at_the_epochs_that_are_validated(tmp_path):
    stalled = {"patience": 0, "threshold": "1e9", "threshold_mode": "abs", "factor": 0.5}
    options = [f"--model.scheduler.{name}={value}" for name, value in stalled.items()]
    every = ["--trainer.check_val_every_n_epoch", "2", "--trainer.max_epochs", "6"]
    main([*RUN, *PLATEAU, "val/loss", *options, *every, "--trainer.callbacks", "LearningRateMonitor"])
    (metrics,) = tmp_path.glob("runs/*/*/metrics.csv")
    head, *rows = [line.split(",") for line in metrics.read_text().splitlines()]
    rates = [float(row[head.index("lr-SGD/pg1")]) for row in rows if row[head.index("lr-SGD/pg1")]]
    assert [rate / rates[0] for rate in rates] == [1, 1, 1, 1, 0.5, 0.5]
