"""A resumed run continues its checkpoint and obeys its own options, from Python as from the command."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, StepLR

import recipes
from datamodules import Digits, TaskSequence
from recipes.base.resume import merged
from recipes.nn import MLP
from recipes.optim import WarmupCosine
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

IMAGES = 1257


class Rates(Callback):
    """Notes the learning rate of every step."""

    def __init__(self):
        self.lrs = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.lrs.append(optimizer.param_groups[0]["lr"])


class StopAfter(Callback):
    """Stops a run after some epochs, as a signal would."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


def adamw(lr=1e-3, weight_decay=0.1):
    return lambda parameters: AdamW(parameters, lr=lr, weight_decay=weight_decay)


def supervised(optimizer=None, scheduler=None, **options):
    encoder = MLP(image_size=8, in_channels=1, hidden=(4,))
    options = {"optimizer": optimizer or adamw(), "scheduler": scheduler, "lr_batch_size": None} | options
    return recipes.Supervised(encoder, num_classes=10, **options)


class Run:
    """Fits a recipe, and saves its checkpoint."""

    def __init__(self, path, recipe, after=None, batch_size=400, callbacks=(), data=None, **trainer):
        rates = Rates()
        trainer = {"max_epochs": 2, "limit_val_batches": 0, **trainer}
        self.trainer = quiet_trainer(callbacks=[rates, *callbacks], **trainer)
        self.recipe = recipe
        data = data or Digits(size=8, batch_size=batch_size)
        self.trainer.fit(recipe, datamodule=data, ckpt_path=after and after.path, weights_only=True)
        self.lrs = rates.lrs
        self.path = path / f"{len(list(path.iterdir()))}.ckpt"
        self.trainer.save_checkpoint(self.path)

    @property
    def optimizer(self):
        return self.trainer.optimizers[0]


def steps_of(optimizer):
    return {int(state["step"]) for state in optimizer.state.values()}


def test_a_changed_lr_and_weight_decay_act_and_the_moments_continue(tmp_path):
    first = Run(tmp_path, supervised())
    resumed = Run(tmp_path, supervised(adamw(lr=1e-6, weight_decay=0.5)), after=first, max_epochs=4)
    assert resumed.lrs == [1e-6] * 6
    assert [group["weight_decay"] for group in resumed.optimizer.param_groups] == [0.5, 0.0]
    assert steps_of(resumed.optimizer) == {12}


def test_a_value_that_a_callback_has_set_in_training_stays_where_no_option_changed(tmp_path):
    class Halve(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.optimizers[0].param_groups[0]["lr"] /= 2

    first = Run(tmp_path, supervised(), callbacks=[Halve()])
    resumed = Run(tmp_path, supervised(adamw(weight_decay=0.5)), after=first, max_epochs=3)
    assert resumed.lrs == [2.5e-4] * 3


def test_an_optimiser_of_another_class_starts_with_an_empty_state(tmp_path):
    first = Run(tmp_path, supervised())
    resumed = Run(tmp_path, supervised(lambda p: SGD(p, lr=0.1, momentum=0.5)), after=first, max_epochs=3)
    assert resumed.lrs == [0.1] * 3
    assert {name for state in resumed.optimizer.state.values() for name in state} == {"momentum_buffer"}


def test_parts_that_are_frozen_on_a_resume_are_refused_in_words(tmp_path):
    first = Run(tmp_path, supervised())
    recipe = supervised()
    recipe.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match="trained cannot become frozen on a resume"):
        Run(tmp_path, recipe, after=first, max_epochs=3)


def test_a_raised_patience_acts_and_the_best_score_continues(tmp_path):
    val = {"limit_val_batches": 1, "num_sanity_val_steps": 0}
    # nothing is better than the first epoch by 100
    first = Run(
        tmp_path, supervised(), callbacks=[EarlyStopping("val/loss", patience=1, min_delta=100)], max_epochs=9, **val
    )
    assert first.trainer.current_epoch == 2
    stopping = EarlyStopping("val/loss", patience=50, min_delta=100)
    resumed = Run(tmp_path, supervised(), after=first, callbacks=[stopping], max_epochs=9, **val)
    assert resumed.trainer.current_epoch == 9
    assert stopping.patience == 50
    assert stopping.wait_count == 8  # epochs since the best, of both runs
    assert stopping.best_score == first.trainer.early_stopping_callback.best_score


def test_the_progress_of_an_earlier_run_is_no_option_of_a_callback_that_is_used_again(tmp_path):
    class Counter(Callback):
        epochs = 0

        def on_train_epoch_end(self, trainer, pl_module):
            self.epochs += 1

        def state_dict(self):
            return {"epochs": self.epochs}

        def load_state_dict(self, state_dict):
            self.epochs = state_dict["epochs"]

    first = Run(tmp_path, supervised(), callbacks=[Counter()], max_epochs=1)
    counter = Counter()
    Run(tmp_path, supervised(), callbacks=[counter], max_epochs=3)
    Run(tmp_path, supervised(), after=first, callbacks=[counter], max_epochs=2)
    assert counter.epochs == 2
    tester = quiet_trainer(callbacks=[counter])
    tester.test(supervised(), datamodule=Digits(size=8), ckpt_path=first.path, verbose=False)
    assert counter.epochs == 1


def test_the_best_score_of_a_checkpoint_callback_continues_in_another_folder(tmp_path):
    def best(name):
        return ModelCheckpoint(tmp_path / name, monitor="val/loss", filename="best")

    val = {"limit_val_batches": 1, "num_sanity_val_steps": 0, "enable_checkpointing": True}
    path = tmp_path / "saved"
    path.mkdir()
    old, new = best("old"), best("new")
    first = Run(path, supervised(adamw(lr=1e-2)), callbacks=[old], max_epochs=3, **val)
    Run(path, supervised(adamw(lr=10.0)), after=first, callbacks=[new], max_epochs=4, **val)  # and worse
    assert new.best_model_score == old.best_model_score
    assert (tmp_path / "old" / "best.ckpt").is_file()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: StepLR(o, 1, gamma=0.5),
        lambda o: CosineAnnealingLR(o, T_max=8),
        lambda o: WarmupCosine(o, warmup_epochs=1),
        lambda o: OneCycleLR(o, max_lr=0.5, total_steps=8),
        lambda o: ReduceLROnPlateau(o, "train/loss", patience=0, threshold=100.0),
    ],
)
def test_an_unchanged_schedule_continues_as_if_nothing_had_happened(tmp_path, scheduler):
    def recipe():
        return supervised(scheduler=scheduler)

    first = Run(tmp_path, recipe(), max_epochs=4, callbacks=[StopAfter(2)])
    resumed = Run(tmp_path, recipe(), after=first, max_epochs=4)
    whole = Run(tmp_path, recipe(), max_epochs=4)
    assert len(first.lrs) == 6
    assert first.lrs + resumed.lrs == whole.lrs
    assert len(set(whole.lrs)) > 2


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (lambda o: StepLR(o, 1, gamma=0.5), lambda o: StepLR(o, 1, gamma=0.1)),
        (lambda o: StepLR(o, 1, gamma=0.5), lambda o: CosineAnnealingLR(o, T_max=8)),
        (lambda o: WarmupCosine(o, warmup_epochs=1), lambda o: CosineAnnealingLR(o, T_max=8)),
        (lambda o: CosineAnnealingLR(o, T_max=8), lambda o: WarmupCosine(o, warmup_epochs=1)),
        (lambda o: WarmupCosine(o, warmup_epochs=1), lambda o: WarmupCosine(o, warmup_epochs=2, final=0.5)),
        (lambda o: WarmupCosine(o, warmup_epochs=1), None),
        (None, lambda o: WarmupCosine(o, warmup_epochs=1)),
        (None, lambda o: StepLR(o, 1, gamma=0.1)),
    ],
)
@pytest.mark.parametrize("lr", [1e-3, 1e-5])
def test_a_changed_schedule_goes_on_as_if_it_had_been_there_from_the_start(tmp_path, then, now, lr):
    first = Run(tmp_path, supervised(scheduler=then), max_epochs=2)
    resumed = Run(tmp_path, supervised(adamw(lr=lr), scheduler=now), after=first, max_epochs=4)
    whole = Run(tmp_path, supervised(adamw(lr=lr), scheduler=now), max_epochs=4)
    assert resumed.lrs == pytest.approx(whole.lrs[6:], rel=1e-9)


def cosine(done, total):
    return (1 + math.cos(math.pi * done / total)) / 2


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_schedule_is_placed_by_the_images_trained_on(tmp_path, accumulate):
    def recipe():
        return supervised(scheduler=lambda o: WarmupCosine(o, warmup_epochs=0))

    batch = 256 // accumulate
    first = Run(tmp_path, recipe(), batch_size=64, max_epochs=-1, max_steps=38)  # two epochs of 19 steps
    resumed = Run(tmp_path, recipe(), after=first, batch_size=batch, max_epochs=6, accumulate_grad_batches=accumulate)
    an_epoch = math.ceil(IMAGES // batch / accumulate)
    done, left = 38 * 64 // 256 + 1, 4 * an_epoch  # 9.5 steps of 256 images are rounded to 10
    expected = [1e-3 * cosine(done + step, done + left) for step in range(left)]
    assert resumed.lrs == pytest.approx(expected, rel=1e-9)
    again = Run(tmp_path, recipe(), after=resumed, batch_size=batch, max_epochs=8, accumulate_grad_batches=accumulate)
    done, left = done + left, 2 * an_epoch
    assert again.lrs == pytest.approx([1e-3 * cosine(done + step, done + left) for step in range(left)], rel=1e-9)


def test_with_max_steps_the_steps_that_are_left_end_the_schedule(tmp_path):
    def recipe():
        return supervised(scheduler=lambda o: WarmupCosine(o, warmup_epochs=0))

    first = Run(tmp_path, recipe(), batch_size=64, max_epochs=-1, max_steps=38)
    resumed = Run(tmp_path, recipe(), after=first, batch_size=256, max_epochs=-1, max_steps=50)
    assert resumed.lrs == pytest.approx([1e-3 * cosine(10 + step, 22) for step in range(12)], rel=1e-9)


def test_the_momentum_of_byol_is_placed_with_the_schedule(tmp_path):
    class Momenta(Callback):
        def __init__(self):
            self.taken = []

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.taken.append(pl_module.target_momentum)

    def recipe():
        encoder = MLP(image_size=8, in_channels=1, hidden=(4,))
        return recipes.BYOL(encoder, projection_dim=4, projection_hidden_dim=4, momentum=0.5)

    momenta = Momenta()
    first = Run(tmp_path, recipe(), batch_size=64, max_epochs=2)
    Run(tmp_path, recipe(), after=first, batch_size=256, max_epochs=6, callbacks=[momenta])
    expected = [1 - 0.5 * cosine(10 + step, 26) for step in range(16)]
    assert momenta.taken == pytest.approx(expected, rel=1e-9)


def test_a_checkpoint_without_a_record_of_options_obeys_those_of_the_optimiser(tmp_path):
    first = Run(tmp_path, supervised())
    checkpoint = torch.load(first.path, weights_only=True)
    del checkpoint["options"]
    torch.save(checkpoint, first.path)
    resumed = Run(tmp_path, supervised(adamw(lr=1e-6, weight_decay=0.5)), after=first, max_epochs=4)
    assert resumed.lrs == [1e-6] * 6
    assert [group["weight_decay"] for group in resumed.optimizer.param_groups] == [0.5, 0.0]
    assert steps_of(resumed.optimizer) == {12}


def tasks(epochs):
    return TaskSequence(Digits(size=8), num_tasks=5, epochs_per_task=epochs, batch_size=64)


def test_a_task_keeps_its_options_and_its_schedule_on_a_resume(tmp_path):
    def recipe(lr):
        encoder = MLP(image_size=8, in_channels=1, hidden=(4,))
        scheduler = lambda o: WarmupCosine(o, warmup_epochs=0)  # noqa: E731
        return recipes.FineTuning(encoder, tasks(3).tasks, optimizer=adamw(lr=lr), scheduler=scheduler)

    first = Run(tmp_path, recipe(1e-3), data=tasks(3), max_epochs=4)  # one epoch of the second task
    resumed = Run(tmp_path, recipe(1e-5), after=first, data=tasks(3), max_epochs=7)
    whole = Run(tmp_path, recipe(1e-5), data=tasks(3), max_epochs=7)
    assert resumed.lrs == pytest.approx(whole.lrs[len(first.lrs) :], rel=1e-9)


def test_other_epochs_for_tasks_that_are_over_are_refused(tmp_path):
    def recipe():
        encoder = MLP(image_size=8, in_channels=1, hidden=(4,))
        return recipes.FineTuning(encoder, tasks(3).tasks, optimizer=adamw())

    first = Run(tmp_path, recipe(), data=tasks(3), max_epochs=4)
    with pytest.raises(ValueError, match=r"epochs_per_task is \[2, .* had \[3\] epochs"):
        Run(tmp_path, recipe(), after=first, data=tasks(2), max_epochs=7)


def test_only_values_that_were_created_differently_replace_saved_ones():
    then = {"patience": 1, "count": 0, "best": torch.tensor(9.0), "inner": [{"gamma": 0.5, "epoch": 0}]}
    now = {"patience": 5, "count": 0, "best": torch.tensor(9.0), "inner": [{"gamma": 0.1, "epoch": 0}], "new": 1}
    saved = {"patience": 1, "count": 7, "best": torch.tensor(3.0), "inner": [{"gamma": 0.5, "epoch": 4}], "late": 2}
    expected = {"patience": 5, "count": 7, "best": 3.0, "inner": [{"gamma": 0.1, "epoch": 4}], "new": 1, "late": 2}
    assert merged(saved, then, now) == expected
