import math

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from datamodules import Batch, Digits
from recipes import Supervised
from recipes.augment import HandwritingViews
from recipes.nn import MLP, ConvNet
from recipes.optim import WarmupCosine


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
    view = recipe.views(batch.image, recipe.key(batch))
    expected = 0.0
    for logits, label in zip(recipe.head(recipe(view)).tolist(), batch.label.tolist()):
        total = sum(math.exp(x) for x in logits)
        targets = [smoothing / 10 + (1 - smoothing) * (k == label) for k in range(10)]
        expected -= sum(t * (x - math.log(total)) for t, x in zip(targets, logits)) / len(batch.label)
    assert recipe.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)


def test_unlabelled_images_take_no_part_in_the_loss(tmp_path):
    recipe, batch = recipe_and_batch(tmp_path)
    half = Batch(*(x[:16] for x in batch))
    hidden = batch._replace(label=torch.where(torch.arange(32) < 16, batch.label, -1))
    torch.testing.assert_close(recipe.training_step(hidden, 0), recipe.training_step(half, 0))


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
