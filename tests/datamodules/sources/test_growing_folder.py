"""A folder grows and shrinks by one picture at a time: no network is tested on a picture that it was trained on."""

import shutil

import pytest
import torch

import recipes
from datamodules import ImageFolder, SemiSupervised, Subset, TaskSequence
from datamodules.reading import Reading
from recipes.nn import ConvNet
from tests.helpers.pictures import write_pictures
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HALVES = {"val_fraction": 0.4, "test_fraction": 0.4, "image_size": 8}


def names(data, *splits):
    return {str(path.relative_to(data.root)) for split in splits for path in data.paths.get(split, [])}


def read(root, reading=None):
    data = ImageFolder(root, **HALVES)
    if reading is not None:
        data.read_as(reading)
    data.setup()
    return data


def test_no_run_on_the_way_is_tested_on_what_it_was_trained_on(tmp_path):
    write_pictures(tmp_path / "all", ["a", "b"], 5, size=8)
    pictures = sorted((tmp_path / "all").rglob("*.png"))
    order = [pictures[i] for i in torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0)).tolist()]
    grown, runs, remembered = tmp_path / "grown", [], 0
    for folder in "ab":
        (grown / folder).mkdir(parents=True)
        first = next(path for path in order if path.parent.name == folder)
        shutil.copy(first, grown / folder)
        order.remove(first)
    steps = [*order, *order[::-1]]  # each comes, and goes again
    for step, path in enumerate(steps):
        if step < len(order):
            shutil.copy(path, grown / path.parent.name)
        else:
            (grown / path.parent.name / path.name).unlink()
        fresh = names(read(grown), "test", "val")
        for trained, reading in runs:
            data = read(grown, reading)
            assert not trained & names(data, "test", "val")
            remembered += len(trained & fresh)
        data = read(grown)
        saved = Reading.of_checkpoint({"reading": data.reading._asdict()})
        runs.append((names(data, "train"), saved))
    assert remembered > 0  # pictures that would have been tested without the memory


@pytest.fixture
def folder(tmp_path):
    """A class with one picture, which by its name is for testing, and such pictures to add."""
    write_pictures(tmp_path / "all", ["a", "b"], 12, size=8)
    data = read(tmp_path / "all")
    for name in names(data, "test"):
        (tmp_path / "few" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "all" / name, tmp_path / "few" / name)
    return tmp_path


def trained(data):
    recipe = recipes.Supervised(ConvNet((4,), in_channels=3), num_classes=2, scheduler=None, lr_batch_size=None)
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(recipe, datamodule=data)
    return recipe, trainer


def grow(folder):
    shutil.copytree(folder / "all", folder / "few", dirs_exist_ok=True)


def few(folder):
    return ImageFolder(folder / "few", batch_size=2, **HALVES)


@pytest.mark.parametrize("path", [None, "saved.ckpt"])
def test_a_recipe_is_not_tested_on_the_only_picture_of_a_class_that_has_grown(path, folder):
    data = few(folder)
    recipe, trainer = trained(data)
    before = names(data, "train")
    assert recipe.reading.for_training == tuple(sorted(before))
    if path is not None:  # a new recipe, which is given the checkpoint after the data is set up
        trainer.save_checkpoint(folder / path)
        recipe = recipes.Supervised(ConvNet((4,), in_channels=3), num_classes=2, scheduler=None)
    grow(folder)
    new = few(folder)
    quiet_trainer().test(recipe, datamodule=new, ckpt_path=path and folder / path, verbose=False)
    assert not before & names(new, "test", "val")
    assert before <= names(new, "train")
    fresh = few(folder)
    fresh.setup()
    assert before <= names(fresh, "test")


def test_an_encoder_of_a_run_brings_the_memory_to_the_next_run(folder):
    data = few(folder)
    recipe, _ = trained(data)
    before = names(data, "train")
    grow(folder)
    new = few(folder)
    second = recipes.LinearProbe(recipe.encoder, num_classes=2, lr_batch_size=None)
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(second, datamodule=new)
    assert not before & names(new, "test", "val")


@pytest.mark.parametrize("kind", [Subset, SemiSupervised, TaskSequence])
def test_what_wraps_a_folder_has_its_memory(kind, folder):
    options = {
        SemiSupervised: {"labelled_per_batch": 2, "labels_per_class": 1},
        TaskSequence: {"num_tasks": 2, "scenario": "class"},
    }
    data = kind(few(folder), **options.get(kind, {}))
    data.setup()
    assert data.reading.for_training == tuple(sorted(names(data.base, "train")))
