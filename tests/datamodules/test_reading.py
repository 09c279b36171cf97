"""Other data is read as the images that a network was trained on, unless an argument says otherwise."""

import pytest
import torch

import datamodules
import recipes
from datamodules import Digits, ImageDataModule, ImageFolder, SemiSupervised, Subset, TaskSequence
from datamodules.reading import Reading
from recipes.nn import ConvNet
from tests.helpers.pictures import write_pictures
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|statistic|No positive|batch)")


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path / "pictures", ["a", "b"], 12, size=20)
    return tmp_path / "pictures"


def trained(data, channels=1, encoder=None):
    recipe = recipes.Supervised(encoder or ConvNet((4,), channels), num_classes=2, scheduler=None)
    quiet_trainer(max_steps=1).fit(recipe, datamodule=data)
    return recipe


def predicted_shape(recipe, data):
    quiet_trainer(limit_predict_batches=1).predict(recipe, datamodule=data)
    return data.image_shape


def test_a_folder_is_read_as_the_images_of_the_trained_network(pictures):
    recipe = trained(ImageFolder(pictures, 9, 1, value_range=(0, 100), batch_size=4))
    assert recipe.reading == Reading(9, 1, (0, 100))
    new = ImageFolder(pictures, batch_size=4)
    assert predicted_shape(recipe, new) == (1, 9, 9)
    assert new.value_range == (0, 100)


def wrapped(kind, base):
    options = {
        SemiSupervised: {"labelled_per_batch": 2, "labels_per_class": 2},
        TaskSequence: {"num_tasks": 2, "scenario": "class"},
    }
    return kind(base, **options.get(kind, {}), batch_size=4)


WRAPPERS = [
    kind
    for kind in (getattr(datamodules, name) for name in datamodules.__all__)
    if isinstance(kind, type) and issubclass(kind, ImageDataModule) and "base" in kind.__init__.__annotations__
]


@pytest.mark.parametrize("kind", WRAPPERS)
def test_what_a_datamodule_wraps_is_read_as_the_network_was_trained(kind, pictures):
    recipe = trained(wrapped(kind, ImageFolder(pictures, 9, 1)))
    assert recipe.reading == Reading(9, 1)
    data = wrapped(kind, ImageFolder(pictures))
    assert predicted_shape(recipe, data) == (1, 9, 9)


@pytest.mark.parametrize("kind", [None, *WRAPPERS])
def test_data_that_is_set_up_by_hand_forgets_the_network_of_an_earlier_run(kind, pictures):
    base = ImageFolder(pictures)
    data = base if kind is None else wrapped(kind, base)
    assert predicted_shape(trained(wrapped(kind or Subset, ImageFolder(pictures, 9, 1))), data) == (1, 9, 9)
    base.prepare_data()
    base.setup()
    assert base.image_shape == (3, 224, 224)
    assert predicted_shape(trained(wrapped(kind or Subset, ImageFolder(pictures, 9, 1))), data) == (1, 9, 9)
    data.prepare_data()
    data.setup()
    assert data.image_shape == (3, 224, 224)


def test_digits_are_read_at_the_size_of_the_network_and_an_argument_beats_it():
    recipe = recipes.SimCLR(ConvNet((4,)), scheduler=None)
    quiet_trainer(max_steps=1).fit(recipe, datamodule=Digits(24))
    assert predicted_shape(recipe, Digits()) == (1, 24, 24)
    with pytest.warns(
        UserWarning, match="images are read at 8×8 pixels instead of 24×24, with which the network was trained"
    ):
        assert predicted_shape(recipe, Digits(8)) == (1, 8, 8)


def test_data_is_not_changed_by_the_network_that_read_it(pictures):
    recipe = trained(ImageFolder(pictures, 9, 1, batch_size=4))
    data = ImageFolder(pictures, batch_size=4)
    assert predicted_shape(recipe, data) == (1, 9, 9)
    trained(data, channels=3)
    assert data.image_shape == (3, 224, 224)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_what_wraps_data_that_another_network_has_read_is_not_changed_by_it(kind, pictures):
    """Whichever of the two is used in between."""
    recipe = trained(ImageFolder(pictures, 9, 1, batch_size=4))
    base = ImageFolder(pictures, batch_size=4)
    assert predicted_shape(recipe, base) == (1, 9, 9)
    data = wrapped(kind, base)
    trained(data, channels=3)
    assert data.image_shape == (3, 224, 224)
    assert predicted_shape(recipe, base) == (1, 9, 9)
    assert predicted_shape(recipe, data) == (1, 9, 9)
    assert next(iter(data.predict_dataloader())).image.shape[1:] == (1, 9, 9)


def test_images_are_not_read_again_for_the_network_that_was_trained_on_them(pictures):
    data = ImageFolder(pictures, 9, 1, batch_size=4)
    recipe = trained(data)
    images = data.splits.train.image
    assert predicted_shape(recipe, data) == (1, 9, 9)
    assert data.splits.train.image is images


def test_an_encoder_takes_the_reading_along(pictures):
    encoder = trained(ImageFolder(pictures, 9, 1, batch_size=4)).encoder
    assert encoder.reading == encoder.fresh().reading == Reading(9, 1)
    data = ImageFolder(pictures, batch_size=4)
    trained(data, encoder=encoder)
    assert data.image_shape == (1, 9, 9)


def test_the_reading_is_in_the_checkpoint_and_the_weights_of_a_file(pictures, tmp_path):
    recipe = recipes.Supervised(ConvNet((4,), 1), num_classes=2, scheduler=None)
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(recipe, datamodule=ImageFolder(pictures, 9, 1, value_range=(0, 100), batch_size=4))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert Reading.of_checkpoint(checkpoint) == Reading(9, 1, (0, 100))
    assert ConvNet((4,), 1, weights=str(tmp_path / "a.ckpt")).reading == Reading(9, 1, (0, 100))
    del checkpoint["reading"]  # of an earlier version
    assert Reading.of_checkpoint(checkpoint) == Reading(9, 1)


@pytest.mark.parametrize(
    "saved",
    [
        {"reading": {"image_size": 10**9, "channels": 7, "value_range": "all"}},
        {"reading": {"image_size": "9", "value_range": [5, 5]}},
        {"image_shape": [1, 9, 8]},
        {"image_shape": "wrong", "reading": 3},
        {},
    ],
)
def test_what_cannot_be_a_reading_in_a_checkpoint_is_not_taken(saved):
    assert Reading.of_checkpoint(saved) == Reading()
