import inspect
import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import recipes
from datamodules import Batch, Digits, TaskBatch, Tasks, TaskSequence
from recipes import Recipe, SimCLR, Supervised
from recipes.augment import Key, SupervisedViews, Views, uniform
from recipes.base.finite import StopOnDivergence
from recipes.base.position import steps_between
from recipes.callbacks import Checkpoint, Health
from recipes.cli.catalogue import recipe_names
from recipes.continual import ContinualRecipe
from recipes.distillation import Teacher
from recipes.nn import ConvNet, Encoder
from recipes.optim import WarmupCosine
from tests.helpers.fake_cuda import fake_cuda
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01)


def build(name, **arguments):
    """A small recipe of any name, with the same weights each time."""
    seed_everything(0, verbose=False)
    recipe = getattr(recipes, name)
    given = {"encoder": ConvNet((4, 8)), "optimizer": sgd, "num_classes": 10, "tasks": Tasks((2,) * 5), **arguments}
    known = inspect.signature(recipe.__init__).parameters
    if "teacher" in known and known["teacher"].default is inspect.Parameter.empty:
        given["teacher"] = Teacher([Supervised(ConvNet((4, 8)), 10)], ["untrained"])
    return recipe(**{name: value for name, value in given.items() if name in known})


def trainer(tmp_path, **options):
    options = {"max_epochs": 2, "limit_val_batches": 0, "logger": False, "enable_checkpointing": False, **options}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    return Trainer(default_root_dir=tmp_path, **quiet, **options)


class LearningRates(Callback):
    def __init__(self):
        self.used = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.used.append({group["lr"] for group in optimizer.param_groups})


@pytest.mark.parametrize("name", recipe_names())
def test_every_trainable_parameter_is_in_the_optimiser_once(name, tmp_path):
    recipe = build(name, scheduler=None)
    fit = trainer(tmp_path, fast_dev_run=True)
    in_tasks = isinstance(recipe, ContinualRecipe)
    fit.fit(recipe, TaskSequence(Digits(), epochs_per_task=2, batch_size=64) if in_tasks else Digits(batch_size=64))
    held = [id(p) for group in fit.optimizers[0].param_groups for p in group["params"]]
    frozen = {*recipe.frozen_parameters()}
    assert sorted(held) == sorted(id(p) for p in recipe.parameters() if p.requires_grad and p not in frozen)


def test_a_run_that_ended_where_nothing_was_due_goes_on_from_its_end(tmp_path):
    def run(epochs, ckpt_path=None):
        recipe = build("SimCLR", scheduler=None)
        saving = Checkpoint(every_n_epochs=5)
        saving.dirpath = str(tmp_path)
        fit = trainer(tmp_path, enable_checkpointing=True, callbacks=[saving], max_epochs=epochs)
        fit.fit(recipe, Digits(batch_size=256), ckpt_path=ckpt_path)
        return recipe.state_dict(), fit.current_epoch, fit.global_step

    whole = run(3)
    run(2)
    torch.testing.assert_close(run(3, ckpt_path=tmp_path / "last.ckpt"), whole, rtol=0, atol=0)


def test_lr_is_scaled_by_the_images_of_an_optimiser_step(tmp_path):
    rates = LearningRates()
    recipe = build("SimCLR", scheduler=None, lr_batch_size=256)
    trainer(tmp_path, accumulate_grad_batches=2, callbacks=[rates]).fit(recipe, Digits(batch_size=64))
    assert all(used == {0.1 * 128 / 256} for used in rates.used)


def test_the_schedule_spans_the_whole_run_step_by_step(tmp_path):
    rates = LearningRates()
    recipe = build("SimCLR", scheduler=lambda o: WarmupCosine(o, warmup_epochs=1), lr_batch_size=None)
    trainer(tmp_path, max_epochs=3, callbacks=[rates]).fit(recipe, Digits(batch_size=256))  # 4 steps an epoch
    warm = [0.1 * (t + 1) / 5 for t in range(4)]
    cosine = [0.1 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)]
    assert [used.pop() for used in rates.used] == pytest.approx(warm + cosine, rel=1e-12)


def test_the_length_of_a_run_may_be_given_in_steps_alone(tmp_path):
    rates = LearningRates()
    recipe = build("SimCLR", scheduler=lambda o: WarmupCosine(o, warmup_epochs=1), lr_batch_size=None)
    trainer(tmp_path, max_epochs=None, max_steps=6, callbacks=[rates]).fit(recipe, Digits(batch_size=419))  # 3 an epoch
    expected = [0.025, 0.05, 0.075, 0.1, 0.075, 0.025]
    assert [lr for (lr,) in rates.used] == pytest.approx(expected)


def test_a_schedule_of_torch_moves_every_epoch(tmp_path):
    rates = LearningRates()
    schedule = lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=1, gamma=0.5)  # noqa: E731
    trainer(tmp_path, callbacks=[rates]).fit(build("Supervised", scheduler=schedule), Digits(batch_size=256))
    assert [used.pop() for used in rates.used] == pytest.approx([0.1] * 4 + [0.05] * 4)


def test_images_are_normalised_with_the_training_images_mean_and_std(tmp_path):
    data = Digits(batch_size=64)
    recipe = build("SimCLR", scheduler=None)
    trainer(tmp_path, fast_dev_run=True).fit(recipe, data)
    image = torch.cat([batch.image for batch in data.bank_dataloader()])
    normalised = recipe.normalize(image)
    assert normalised.mean().item() == pytest.approx(0, abs=1e-3)
    assert normalised.std().item() == pytest.approx(1, abs=1e-3)
    assert "normalize.mean" in recipe.state_dict()


def test_features_of_uint8_and_float_images_are_the_same():
    recipe = build("SimCLR").eval()
    image = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(recipe(image), recipe(image / 255))


def test_random_keys_are_of_the_seed_the_epoch_the_image_and_the_view(tmp_path):
    keys = []

    class Seen(SimCLR):
        def training_step(self, batch, batch_idx):
            keys.append(self.key(batch, 1))
            torch.testing.assert_close(keys[-1].index, batch.index)
            return super().training_step(batch, batch_idx)

    seed_everything(7, verbose=False)
    trainer(tmp_path).fit(Seen(ConvNet((4,)), optimizer=sgd, scheduler=None), Digits(batch_size=1000))
    assert [(key.seed, key.epoch, key.view) for key in keys] == [(7, 0, 1), (7, 1, 1)]


@pytest.mark.parametrize("name", recipe_names())
def test_a_number_out_of_range_is_refused_by_the_name_of_its_argument(name):
    arguments = inspect.signature(getattr(recipes, name).__init__).parameters.values()
    numbers = [given.name for given in arguments if given.annotation in (int, float, int | None, float | None)]
    assert numbers
    for argument in numbers:
        with pytest.raises(ValueError, match=rf"^{argument} is -1\b"):
            build(name, **{argument: -1})


class Numbered(Views):
    """Views whose every pixel is the random number that the key draws for the image."""

    def view(self, image, key):
        return uniform(key, 1)[:, :, None, None].expand_as(image)


def test_an_image_gets_a_new_view_each_time_that_it_comes_in_an_epoch():
    recipe = build("Supervised", views=Numbered())
    batch = Batch(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(3), torch.tensor([5, 9, 5]))
    views = {(step, view): recipe.view(batch, step, view)[:, 0, 0, 0] for step in (0, 1) for view in (0, 1)}
    drawn = torch.stack(list(views.values()))  # [steps × views, 3]
    assert len(drawn.unique()) == 8
    assert torch.equal(drawn[:, 0], drawn[:, 2])
    for (step, view), row in views.items():
        assert torch.equal(row, uniform(Key(0, 0, batch.index, view).fold_in(step), 1).flatten())


def test_null_views_give_the_images_as_they_are():
    recipe = build("FineTuning", views=None)
    numbers = torch.zeros(3, dtype=torch.int64)
    batch = TaskBatch(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), numbers, numbers, numbers)
    assert recipe.view(batch, 0) is batch.image


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_without_a_trainer_or_without_data_has_no_datamodule(name, tmp_path):
    recipe = build(name)
    assert recipe.datamodule is None
    recipe.trainer = trainer(tmp_path)
    assert recipe.datamodule is None
    recipe.trainer.datamodule = data = Digits()
    assert recipe.datamodule is data


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (ConvNet((4,), in_channels=3), "the images have 1 channels?, ConvNet takes 3"),
        (Encoder(nn.Flatten(), 9, 1), r"Encoder gives \[1, 256\] for one image"),
        (Encoder(nn.Sequential(nn.Conv2d(1, 4, 32), nn.Flatten()), 4, 1), "cannot take images of 16×16"),
    ],
)
def test_an_encoder_that_does_not_fit_the_images_is_refused_before_training(encoder, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        trainer(tmp_path).fit(SimCLR(encoder, optimizer=sgd, scheduler=None), Digits())


def test_trying_the_encoder_leaves_it_as_it_was(tmp_path):
    recipe = build("SimCLR", scheduler=None)
    before = {name: value.clone() for name, value in recipe.encoder.state_dict().items()}
    recipe.encoder.network[1].eval()
    fit = trainer(tmp_path)
    fit.strategy.connect(recipe)
    fit.datamodule = Digits()
    fit.datamodule.setup()
    recipe.trainer = fit
    recipe.setup("fit")
    torch.testing.assert_close(recipe.encoder.state_dict(), before, rtol=0, atol=0)
    assert not recipe.encoder.network[1].training
    assert recipe.encoder.network[0].training


def test_a_checkpoint_of_another_recipe_is_refused_by_name(tmp_path):
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(build("SimCLR", scheduler=None), Digits(batch_size=1000))
    fit.save_checkpoint(tmp_path / "simclr.ckpt")
    with pytest.raises(ValueError, match="is of the recipe SimCLR, this run is Supervised"):
        trainer(tmp_path).fit(build("Supervised"), Digits(), ckpt_path=tmp_path / "simclr.ckpt")


def test_a_checkpoint_of_another_network_is_refused_with_what_differs(tmp_path):
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(build("SimCLR", scheduler=None), Digits(batch_size=1000))
    fit.save_checkpoint(tmp_path / "simclr.ckpt")
    other = build("SimCLR", encoder=ConvNet((4, 16)), scheduler=None)
    with pytest.raises(ValueError, match=r"does not fit this SimCLR: .*encoder\.network"):
        trainer(tmp_path, max_epochs=2).fit(other, Digits(batch_size=1000), ckpt_path=tmp_path / "simclr.ckpt")


def test_lr_batch_size_without_a_datamodule_takes_the_batch_size_of_the_loader(tmp_path):
    images = TensorDataset(torch.zeros(64, 1, 16, 16), torch.zeros(64, dtype=torch.int64))
    recipe = build("SimCLR", lr_batch_size=256, scheduler=None, optimizer=partial(torch.optim.SGD, lr=0.8))
    one = trainer(tmp_path)
    one.fit(recipe, DataLoader(images, 32))
    assert one.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="lr_batch_size=None"):
        trainer(tmp_path).fit(build("SimCLR", lr_batch_size=256), [list(batch) for batch in DataLoader(images, 32)])


def test_lr_batch_size_has_to_be_positive():
    with pytest.raises(ValueError, match="lr_batch_size is 0"):
        build("SimCLR", lr_batch_size=0)


def test_a_run_without_end_says_that_the_schedule_needs_one(tmp_path):
    with pytest.raises(ValueError, match="the schedule needs the length of the run"):
        trainer(tmp_path, max_epochs=-1).fit(build("SimCLR"), Digits())


def test_recipe_is_the_base_of_all():
    assert recipe_names()
    assert all(issubclass(getattr(recipes, name), Recipe) for name in recipe_names())


@pytest.mark.parametrize(("given", "added"), [([], [StopOnDivergence]), ([Health("ignore")], [])])
def test_the_check_for_divergence_is_added_once_and_only_where_the_trainer_has_none(given, added, tmp_path):
    fit = trainer(tmp_path, fast_dev_run=True, callbacks=given)
    for _ in range(2):
        fit.fit(build("Supervised", scheduler=None), Digits(batch_size=64))
        assert [type(c) for c in fit.callbacks if isinstance(c, StopOnDivergence)] == [*map(type, given), *added]


@pytest.mark.parametrize("limit", [0, 0.0])
def test_a_schedule_without_training_batches_is_refused_by_the_name_of_the_option(limit):
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=limit)
    for act in (
        lambda: steps_between(trainer, 0, 1),
        lambda: trainer.fit(build("Supervised"), Digits(batch_size=64)),
    ):
        with pytest.raises(ValueError, match=r"trainer\.limit_train_batches is 0.*: training needs at least one batch"):
            act()


def test_a_number_is_logged_without_waiting_for_a_gpu(monkeypatch):
    logged = {}
    monkeypatch.setattr(LightningModule, "log", lambda _, name, value, **options: logged.update({name: value}))
    monkeypatch.setattr(Supervised, "device", torch.device("cuda"))
    recipe = Supervised(ConvNet(), num_classes=2)
    with fake_cuda() as noted, noted() as waits:
        recipe.log("weight", 0.5)
        recipe.log("count", 3)
    assert {name: value.device.type for name, value in logged.items()} == {"weight": "cuda", "count": "cuda"}
    assert not waits


@pytest.mark.parametrize(
    ("size", "said"), [(16, ["the views have 16×16 pixels and the images 8×8"]), (6, []), (None, [])]
)
def test_views_that_are_larger_than_the_images_are_told(size, said, recwarn):
    recipe = Supervised(ConvNet((4,)), 10, views=SupervisedViews(size=size), scheduler=None)
    quiet_trainer(max_steps=1, limit_val_batches=0).fit(recipe, Digits(size=8, batch_size=32))
    found = [str(each.message) for each in recwarn if "the views have" in str(each.message)]
    assert [each.partition(":")[0] for each in found] == said


@pytest.mark.parametrize("name", ["Supervised", "SimCLR", "LinearProbe"])
def test_images_of_other_channels_than_the_encoder_takes_are_refused_in_words(name):
    with pytest.raises(ValueError, match="the images have 3 channels, and the encoder takes 1"):
        build(name)(torch.rand(2, 3, 8, 8))
