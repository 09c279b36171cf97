import math

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from datamodules import Batch, Digits
from recipes import Supervised
from recipes.augment import HandwritingViews
from recipes.nn import MLP, ConvNet
from recipes.optim import WarmupCosine
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer


def recipe_and_batch(tmp_path, **arguments):
    seed_everything(0, verbose=False)
    recipe = Supervised(MLP(16, hidden=(8,), batch_norm=False), num_classes=10, **arguments)
    recipe.trainer = Trainer(default_root_dir=tmp_path, logger=False, enable_checkpointing=False, accelerator="cpu")
    recipe.log = lambda *_, **__: None
    data = Digits(batch_size=32)
    data.setup()
    return recipe, next(iter(data.train_dataloader()))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_cross_entropy_with_the_smoothed_targets(smoothing, tmp_path):
    recipe, batch = recipe_and_batch(tmp_path, label_smoothing=smoothing)
    view = recipe.views(batch.image, recipe.key(batch).fold_in(5))
    expected = 0.0
    for logits, label in zip(recipe.head(recipe(view)).tolist(), batch.label.tolist()):
        total = sum(math.exp(x) for x in logits)
        targets = [smoothing / 10 + (1 - smoothing) * (k == label) for k in range(10)]
        expected -= sum(t * (x - math.log(total)) for t, x in zip(targets, logits)) / len(batch.label)
    assert recipe.training_step(batch, 5).item() == pytest.approx(expected, rel=1e-5)


def test_unlabelled_images_take_no_part_in_the_loss(tmp_path):
    recipe, batch = recipe_and_batch(tmp_path)
    half = Batch(*(x[:16] for x in batch))
    hidden = batch._replace(label=torch.where(torch.arange(32) < 16, batch.label, -1))
    torch.testing.assert_close(recipe.training_step(hidden, 0), recipe.training_step(half, 0))


def test_an_image_that_comes_again_in_an_epoch_is_seen_in_another_view(tmp_path):
    recipe, batch = recipe_and_batch(tmp_path)
    assert recipe.training_step(batch, 0) == recipe.training_step(batch, 0)
    assert recipe.training_step(batch, 0) != recipe.training_step(batch, 1)


class FewLabels(Digits):
    """Every third image of the first half is labelled, and every one of the second."""

    def load(self):
        splits = super().load()
        label = splits.train.label
        number = torch.arange(len(label))
        label[(number % 3 > 0) & (number < len(label) // 2)] = -1
        return splits


def fit_with_few_labels(tmp_path, devices):
    seed_everything(0, verbose=False)
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "scheduler": None, "lr_batch_size": None}
    recipe = Supervised(MLP(16, hidden=(8,), batch_norm=False), num_classes=10, **sgd)
    trainer = quiet_trainer(
        devices=devices, precision="64-true", max_steps=5, limit_val_batches=0, default_root_dir=tmp_path
    )
    trainer.fit(recipe, FewLabels(batch_size=32))
    return recipe.head.weight.detach().numpy(), trainer.callback_metrics["train/loss"].item()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_devices_with_more_and_with_fewer_labels_train_the_weights_of_one(tmp_path):
    weight, loss = fit_with_few_labels(tmp_path, 1)
    for theirs, their_loss in run(fit_with_few_labels, tmp_path, 2, processes=2):
        assert theirs == pytest.approx(weight, rel=1e-10, abs=1e-13)
        assert their_loss == pytest.approx(loss, rel=1e-10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_digits_are_learnt_in_fifteen_epochs(tmp_path):
    seed_everything(0, verbose=False)
    cosine = lambda o: WarmupCosine(o, warmup_epochs=1)  # noqa: E731
    adam = {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2), "scheduler": cosine, "lr_batch_size": None}
    recipe = Supervised(ConvNet((32, 64)), 10, views=HandwritingViews(), **adam)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=15, default_root_dir=tmp_path, enable_model_summary=False, **quiet)
    data = Digits(batch_size=64)
    trainer.fit(recipe, data)
    assert trainer.test(recipe, data, verbose=False)[0]["test/accuracy"] > 0.85


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"num_classes": 0}, "num_classes is 0"), ({"label_smoothing": 1.0}, "label_smoothing is 1.0")],
)
def test_arguments_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Supervised(**{"encoder": ConvNet((4,)), "num_classes": 10, **arguments})
