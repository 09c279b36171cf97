import re
from pathlib import Path

import numpy as np
import pytest
import torch

import recipes
from datamodules import Digits
from tests.base.logged_steps import BATCHES, Logging, LogsBetween, Read, Rows, logged
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

FOLDER = Path(recipes.__file__).parent


def on_two(*args, **options):
    (rows, *rest), (other_rows, *others) = run(_logged, args, options, processes=2)
    assert (rows, rest) == (other_rows, others), "all devices have the same values"
    return rows, *rest


def _logged(args, options):
    return logged(2, *args, **options)


def of_batch(number):
    """What the two devices log together: 10 b and 10 b + 4."""
    mean = 10.0 * number + 2
    values = {"mean": mean, "with_option": mean, "number": mean, "finer": pytest.approx(mean + 1e-9, abs=1e-12)}
    return {**values, "largest": mean + 2, "sum": 2 * mean, "late": 2 * mean}


def test_a_logged_step_has_the_values_of_all_devices():
    rows, _, of_epoch, computed = on_two(Read())
    assert rows == [(2, {**of_batch(2), "odd": 12.0})]
    assert of_epoch == {**of_batch(4), "odd": 32.0}, "the last step of an epoch is read, too"
    assert computed == [0, 2, 4], "a function is called when its value is read"


def test_between_read_steps_all_devices_keep_the_last_values():
    _, values, _, _ = on_two(Read())
    seen = [each["mean"] for each in values]
    assert seen == [2.0, 2.0, 22.0, 22.0, 42.0], "the first of the epoch, a logged step, and the last"


def test_a_monitored_value_is_read_at_every_step():
    _, values, _, _ = on_two(Read(monitor="mean"))
    assert [each["mean"] for each in values] == [2.0, 12.0, 22.0, 32.0, 42.0]


def test_accumulated_batches_log_the_last_batch_of_a_step():
    rows, _, _, computed = on_two(Read(), accumulate_grad_batches=2, log_every_n_steps=2)
    assert rows == [(1, {**of_batch(3), "odd": 32.0})]
    assert 0 not in computed


@pytest.mark.parametrize("how", ["max_steps", "stopped"])
def test_the_last_step_of_a_run_is_read(how):
    reader, options = (Read(stop=4), {"min_epochs": 0}) if how == "stopped" else (Read(), {"max_steps": 4})
    rows, _, of_epoch, _ = on_two(reader, log_every_n_steps=50, **options)
    assert of_epoch == {**of_batch(3), "odd": 32.0}
    assert rows == ([(3, {**of_batch(3), "odd": 32.0})] if how == "stopped" else [])


def test_values_of_an_epoch_are_means_over_steps_and_devices():
    rows, _, of_epoch, _ = on_two(Read(), of_epoch=True)
    mean = sum(10.0 * number + 2 for number in range(BATCHES)) / BATCHES
    assert [of_epoch[name] for name in ("both", "both_epoch", "slow")] == pytest.approx([mean] * 3)
    (_, step), (_, epoch) = rows
    assert step["both_step"] == 22.0
    assert epoch == {"both_epoch": pytest.approx(mean), "slow": pytest.approx(mean)}


def test_on_one_device_every_step_has_its_own_values():
    rows, values, of_epoch, computed = logged(1, Read(), of_epoch=True)
    assert rows[0] == (2, {**dict.fromkeys(names(rows), 20.0), "finer": pytest.approx(20 + 1e-9), "odd": 10.0})
    assert [each["mean"] for each in values] == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert {of_epoch[name] for name in ("mean", "late", "both_step")} == {40.0}
    assert {of_epoch[name] for name in ("both", "both_epoch", "slow")} == {20.0}
    assert [each["both"] for each in values] == [0.0, 10.0, 20.0, 30.0, 40.0], "until the epoch ends, as with Lightning"
    assert computed == [0, 2, 4]


@pytest.mark.parametrize("devices", [1, 2])
def test_what_another_hook_logs_in_between_takes_nothing_away(devices):
    """Lightning forgets the values of a hook where another one has logged since, at the first batch of an epoch."""
    options = {"of_epoch": True, "max_epochs": 2, "log_every_n_steps": 1}
    if devices == 1:
        rows, values, of_epoch, _ = logged(1, LogsBetween(), **options)
        mean = 20.0
    else:
        rows, values, of_epoch, _ = on_two(LogsBetween(), **options)
        mean = 22.0
    assert of_epoch["slow"] == of_epoch["both_epoch"] == mean
    steps = [row for _, row in rows if "mean" in row]
    assert [row["mean"] for row in steps] == [mean - 20 + 10 * batch for batch in [*range(BATCHES)] * 2]
    assert all({"late", "norm", "number"} <= row.keys() for row in steps)
    assert [each["mean"] for each in values] == [row["mean"] for row in steps]


def test_devices_that_log_different_values_are_told_which():
    assert run(_different, processes=2) == [
        f"devices log different values in a training step; this one logs {name}: log the same names on every device"
        for name in ("rank 0", "rank 1, and more")
    ]


def _different():
    class Different(Logging):
        def training_step(self, batch, batch_idx):
            for name in [f"rank {self.global_rank}", "and more"][: 1 + self.global_rank]:
                self.log(name, torch.zeros(()))
            return self(batch.image).sum()

    trainer = quiet_trainer(2, max_epochs=1, limit_train_batches=BATCHES, limit_val_batches=0)
    with pytest.raises(ValueError, match="different values") as raised:
        trainer.fit(Different(), Digits(size=8, batch_size=16))
    return str(raised.value)


@pytest.mark.parametrize("value", [np.float32(3), np.int64(3), True])
def test_any_number_is_logged(value):
    assert _of_one(value) == {"it": float(value)}


@pytest.mark.parametrize(("value", "words"), [({"a": 1.0}, "cannot be logged"), (torch.zeros(2), "single element")])
def test_what_is_no_number_has_the_error_of_lightning(value, words):
    with pytest.raises(ValueError, match=words):
        _of_one(value)


def _of_one(value):
    class One(Logging):
        def training_step(self, batch, batch_idx):
            self.log("it", value)
            return self(batch.image).sum()

    rows = Rows()
    trainer = quiet_trainer(logger=rows, max_steps=1, limit_val_batches=0, log_every_n_steps=1)
    trainer.fit(One(), Digits(size=8, batch_size=16))
    return rows.rows[0][1]


def names(rows):
    return list(rows[0][1])


def test_no_recipe_joins_what_it_logs_itself():
    sources = [path for path in FOLDER.rglob("*.py") if not path.is_relative_to(FOLDER / "base")]
    asking = [path for path in sources if re.search(r"(self|recipe)\.log\([^\n]*sync_dist", path.read_text())]
    assert len(sources) > 100
    assert not asking
