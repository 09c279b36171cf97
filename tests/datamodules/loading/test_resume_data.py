import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import OnExceptionCheckpoint

from datamodules import ImageDataModule, ImagesInMemory, ResumableLoader, Splits
from tests.helpers.training import SaveAndDie, fit_until_killed, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EPOCHS = {"max_epochs": 3}
STEPS = {"max_steps": 15, "max_epochs": -1}
NO_VAL = {"limit_val_batches": 0}
VAL_WITHIN = {"val_check_interval": 2}


class Counted(ImagesInMemory):
    """Remembers what was fetched."""

    def __init__(self, count):
        label = torch.arange(count) % 2
        super().__init__(torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1), label)
        self.fetched = []

    def __getitems__(self, indices):
        self.fetched.append(tuple(indices))
        return super().__getitems__(indices)


class Numbers(ImageDataModule):
    """22 images in batches of 4: five batches an epoch."""

    def load(self):
        return Splits(("even", "odd"), Counted(22), Counted(6))


class Recorder(LightningModule):
    def __init__(self, die_in_step=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.die_in_step = die_in_step
        self.seen = []

    def training_step(self, batch, batch_idx):
        if self.global_step == self.die_in_step:
            raise RuntimeError("killed")
        self.seen.append((self.current_epoch, batch_idx, tuple(batch.index.tolist())))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(callbacks=(), checkpoint=None, num_workers=0, die_in_step=None, batch_size=4, **trainer):
    recorder, data = Recorder(die_in_step), Numbers(batch_size, num_workers)
    trainer = quiet_trainer(
        enable_checkpointing=any(isinstance(callback, OnExceptionCheckpoint) for callback in callbacks),
        callbacks=list(callbacks),
        **trainer,
    )
    fit_until_killed(trainer, recorder, data, ckpt_path=checkpoint)
    return recorder.seen, data.splits.train.fetched


@pytest.mark.parametrize(
    ("hook", "step", "length"),
    [
        ("batch start", 3, EPOCHS),
        ("batch end", 2, EPOCHS),
        ("batch end", 7, STEPS),
        ("batch end", 7, EPOCHS | VAL_WITHIN),
        ("batch end", 5, EPOCHS),  # the last of an epoch
        ("batch end", 10, STEPS),
        ("batch end", 10, STEPS | NO_VAL),
        ("epoch end", 5, EPOCHS),
        ("epoch end", 5, STEPS),
        ("epoch end", 10, STEPS | NO_VAL),
        ("validation end", 5, EPOCHS),
        ("validation end", 4, EPOCHS | VAL_WITHIN),
    ],
)
def test_a_run_that_was_killed_and_resumed_sees_what_an_undisturbed_one_sees(hook, step, length, tmp_path):
    whole, _ = fit(**length)
    path = tmp_path / "checkpoint.ckpt"
    before, _ = fit([SaveAndDie(path, hook, step)], **length)
    after, fetched = fit(checkpoint=path, **length)
    assert before + after == whole
    assert len(before) == step
    assert len(after) == len(whole) - step
    assert fetched == [indices for *_, indices in after]  # nothing that was skipped was loaded


@pytest.mark.parametrize("step", [2, 5])
def test_workers_that_load_ahead_do_not_move_the_position(step, tmp_path):
    whole, _ = fit(**EPOCHS)
    path = tmp_path / "checkpoint.ckpt"
    before, _ = fit([SaveAndDie(path, "batch end", step)], num_workers=2, **EPOCHS)
    after, _ = fit(checkpoint=path, num_workers=2, **EPOCHS)
    assert before + after == whole


def test_a_batch_that_was_in_hand_when_the_run_died_is_trained_on_after_resuming(tmp_path):
    whole, _ = fit(**EPOCHS)
    before, _ = fit([OnExceptionCheckpoint(tmp_path, "died")], die_in_step=7, **EPOCHS)
    after, _ = fit(checkpoint=tmp_path / "died.ckpt", **EPOCHS)
    assert len(before) == 7
    assert before + after == whole


def test_epochs_differ_and_an_undisturbed_run_repeats_itself():
    whole, _ = fit(**EPOCHS)
    assert len({indices for *_, indices in whole}) == 15
    assert fit(**EPOCHS)[0] == whole


def test_resuming_within_an_epoch_with_another_batch_size_is_an_error(tmp_path):
    path = tmp_path / "checkpoint.ckpt"
    fit([SaveAndDie(path, "batch end", 2)], **EPOCHS)
    with pytest.raises(ValueError, match="batches of 4 images, and batch_size is 2: resume with batch_size=4"):
        fit(checkpoint=path, batch_size=2, **EPOCHS)


def test_resuming_at_an_epochs_end_with_another_batch_size_is_fine(tmp_path):
    path = tmp_path / "checkpoint.ckpt"
    fit([SaveAndDie(path, "epoch end", 5)], **EPOCHS)
    after, _ = fit(checkpoint=path, batch_size=2, **EPOCHS)
    assert len(after) == 22


def test_overfit_batches_trains_on_the_same_batches_in_every_epoch():
    seen, _ = fit(overfit_batches=2, **EPOCHS)
    first = [indices for *_, indices in seen[:2]]
    assert [indices for *_, indices in seen] == first * 3
    assert len({i for indices in first for i in indices}) == 8


def loader():
    data = Numbers(4)
    data.setup()
    return data.train_dataloader()


def test_a_loader_without_a_trainer_resumes_too():
    whole = [batch.index.tolist() for batch in loader()]
    first = loader()
    assert isinstance(first, ResumableLoader)
    batches = iter(first)
    for _ in range(2):
        next(batches)
    second = loader()
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert len(second) == len(whole)
    rest = iter(second)
    assert next(rest).index.tolist() == whole[2]
    third = loader()
    third.load_state_dict(second.state_dict())
    assert [batch.index.tolist() for batch in rest] == whole[3:]
    assert [batch.index.tolist() for batch in third] == whole[3:]
    assert [batch.index.tolist() for batch in second] == whole  # the position holds once


def test_a_position_of_another_epoch_is_not_used():
    first, second = loader(), loader()
    next(iter(first))
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(1)
    assert len(list(second)) == 5
