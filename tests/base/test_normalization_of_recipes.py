"""An encoder is used with the normalisation and the classes that it was trained with, whatever data comes later."""

import copy
import warnings

import pytest
import torch
from lightning.pytorch import seed_everything
from torch.utils.data import DataLoader

import recipes
from datamodules import Digits, TaskSequence
from datamodules.base import Splits
from datamodules.loading.dataset import ImagesInMemory
from recipes import LinearProbe, SimCLR, Supervised
from recipes.base.classifier import Classifier
from recipes.cli.catalogue import recipe_names
from recipes.cli.commands.encoders import named_encoder
from recipes.continual import ContinualRecipe
from recipes.distillation import teacher_from
from recipes.nn import ConvNet, Encoder
from tests.base.test_recipe import build, sgd
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Changed(Digits):
    """The digits, darker, or with other names of the classes."""

    def __init__(self, dark: int = 1, names: str = "0123456789") -> None:
        super().__init__(batch_size=64)
        self.dark, self.names = dark, tuple(names)

    def load(self) -> Splits:
        splits = super().load()

        def changed(images):
            rows = torch.arange(len(images))
            return ImagesInMemory(images.images(rows) // self.dark, images.label)

        return Splits(self.names, *(changed(part) for part in (splits.train, splits.val, splits.test)))


def trained(name="Supervised", data=None, **arguments):
    recipe = build(name, scheduler=None, **arguments)
    data = data or Changed()
    if isinstance(recipe, ContinualRecipe):
        data = TaskSequence(data, epochs_per_task=2, batch_size=64)
    quiet_trainer(fast_dev_run=True).fit(recipe, data)
    return recipe


def statistics(recipe):
    return recipe.normalize.mean.clone(), recipe.normalize.std.clone()


def expected(data):
    data.setup()
    return tuple(torch.tensor(part).expand(3) for part in (data.mean, data.std))


@pytest.mark.parametrize("name", recipe_names())
def test_other_data_changes_neither_normalisation_nor_predictions_of_a_trained_recipe(name):
    recipe = trained(name)
    before = statistics(recipe)
    torch.testing.assert_close(before, expected(Changed()), rtol=0.05, atol=0)  # of a sequence: its first task
    image = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        features = recipe.eval()(image)
        for use in ("predict", "validate", "test"):
            if use != "predict" and isinstance(recipe, ContinualRecipe):
                continue  # they take a sequence of tasks
            getattr(quiet_trainer(fast_dev_run=True), use)(recipe, datamodule=Changed(dark=4))
            assert torch.equal(recipe.eval()(image), features), use
    assert all(map(torch.equal, statistics(recipe), before))
    if not isinstance(recipe, ContinualRecipe):
        quiet_trainer(fast_dev_run=True).fit(recipe, Changed(dark=4))
        assert all(map(torch.equal, statistics(recipe), before))


@pytest.mark.parametrize("name", [name for name in recipe_names() if issubclass(getattr(recipes, name), Classifier)])
def test_a_trained_classifier_trains_on_with_its_own_classes_alone(name):
    recipe = trained(name)
    other = Changed(names="abcdefghij")
    if isinstance(recipe, ContinualRecipe):
        other = TaskSequence(other, epochs_per_task=2, batch_size=64)
    with pytest.raises(ValueError, match=r"knows 10 classes \(0, 1, 2, ...\), and the data has 10 classes \(a, b, c"):
        quiet_trainer(fast_dev_run=True).fit(recipe, other)
    assert recipe.class_names == tuple("0123456789")


def test_an_untrained_recipe_takes_both_anew_from_each_data():
    recipe = build("Supervised", scheduler=None)
    quiet_trainer(fast_dev_run=True).test(recipe, Changed(dark=4, names="abcdefghij"), verbose=False)
    assert recipe.encoder.normalization is None
    assert not recipe.encoder.pretrained
    quiet_trainer(fast_dev_run=True).fit(recipe, Changed())
    torch.testing.assert_close(statistics(recipe), expected(Changed()), rtol=1e-3, atol=1e-5)
    assert recipe.class_names == tuple("0123456789")


def test_a_fit_that_fails_before_its_first_step_leaves_nothing():
    recipe = build("SimCLR", scheduler=None)

    class Fails(Changed):
        def train_dataloader(self):
            raise RuntimeError("no images")

    with pytest.raises(RuntimeError, match="no images"):
        quiet_trainer(max_epochs=1).fit(recipe, Fails(dark=4))
    quiet_trainer(fast_dev_run=True).fit(recipe, Changed())
    torch.testing.assert_close(statistics(recipe), expected(Changed()), rtol=1e-3, atol=1e-5)


def test_training_without_statistics_is_remembered_as_training_on_images_as_they_are():
    data = Changed()
    data.setup()
    batches = [next(iter(data.train_dataloader()))]
    recipe = build("Supervised", scheduler=None, lr_batch_size=None)
    quiet_trainer(max_steps=1, max_epochs=1, limit_val_batches=0).fit(recipe, DataLoader(batches, batch_size=None))
    assert recipe.encoder.normalization == ((0.0,), (1.0,))
    image = torch.rand(2, 1, 16, 16)
    quiet_trainer(fast_dev_run=True).predict(recipe, datamodule=Changed(dark=4))
    assert torch.equal(recipe.normalize(image), image)


def test_an_encoder_takes_its_normalisation_to_the_next_recipe_and_to_copies():
    first = trained()
    mine = statistics(first)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*random weights")
        probe = LinearProbe(copy.deepcopy(first.encoder), 10, optimizer=sgd)
        quiet_trainer(fast_dev_run=True).fit(probe, Changed(dark=4))
    assert all(map(torch.equal, statistics(probe), mine))
    assert all(map(torch.equal, statistics(copy.deepcopy(first)), mine))
    assert first.encoder.pretrained
    assert not trained("LinearProbe").encoder.pretrained  # it never moved


def test_a_pretrained_encoder_normalises_without_a_datamodule_too():
    encoder = Encoder(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4)), 4, 3)
    encoder.normalization = IMAGENET
    recipe = Supervised(encoder, 2, optimizer=sgd)
    image = torch.rand(2, 3, 2, 2)
    mean, std = (torch.tensor(part)[:, None, None] for part in IMAGENET)
    torch.testing.assert_close(recipe(image), encoder((image - mean) / std))

    class Stated(ConvNet):
        normalization = IMAGENET

    assert torch.equal(Supervised(Stated((4,), 3), 2, optimizer=sgd).normalize.mean, torch.tensor(IMAGENET[0]))


@pytest.mark.slow
def test_the_normalisation_is_the_same_on_every_path_from_a_run(tmp_path):
    from recipes.cli import main

    seed_everything(0, verbose=False)
    short = ["--trainer.max_steps", "2", "--trainer.limit_test_batches", "0", "--trainer.limit_val_batches", "0"]
    short += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--runs", str(tmp_path)]
    main(
        [
            "fit",
            "--config",
            "supervised-digits",
            "--model.encoder",
            "ConvNet",
            "--model.encoder.widths",
            "[4,8]",
            *short,
        ]
    )
    (run,) = tmp_path.glob("*/*")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    mean, std = (tuple(state[f"normalize.{part}"].tolist()) for part in ("mean", "std"))
    assert min(std) > 0
    encoders = {
        "load": recipes.load(run).encoder,
        "weights": ConvNet((4, 8), weights=str(run)),
        "advise and probe": named_encoder(str(run), None, 1).encoder,
        "teacher": teacher_from(str(run)).encoder,
    }
    for path, encoder in encoders.items():
        assert encoder.normalization == (mean, std), path
        assert encoder.pretrained, path
        assert statistics(SimCLR(encoder, optimizer=sgd))[0].tolist() == list(mean), path


def test_checkpoints_of_earlier_versions_keep_what_they_were_trained_with():
    recipe = build("Supervised")
    recipe.load_state_dict({**recipe.state_dict(), "normalize.mean": torch.zeros(3), "normalize.std": torch.ones(3)})
    quiet_trainer(fast_dev_run=True).predict(recipe, datamodule=Changed())
    assert recipe.encoder.normalization == ((0.0,) * 3, (1.0,) * 3)


def test_an_encoder_may_have_a_part_that_is_called_normalize():
    class Own(Encoder):
        def __init__(self):
            super().__init__(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4)), 4, 1)
            self.normalize = torch.nn.Identity()

    recipe = trained(encoder=Own())
    torch.testing.assert_close(statistics(recipe), expected(Changed()), rtol=1e-3, atol=1e-5)
