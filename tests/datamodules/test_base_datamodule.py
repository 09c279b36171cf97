import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer

import datamodules
from datamodules import Batch, ImageDataModule, ImageDataset, ImagesInMemory, Splits
from datamodules.batch import is_filler

MODULES = [
    cls
    for cls in (getattr(datamodules, name) for name in datamodules.__all__)
    if isinstance(cls, type) and issubclass(cls, ImageDataModule) and cls is not ImageDataModule
]


def images(count, channels=3, size=4, seed=0):
    return torch.randint(256, (count, channels, size, size), generator=torch.Generator().manual_seed(seed)).to(
        torch.uint8
    )


class Few(ImageDataModule):
    def __init__(self, train=10, val=5, test=3, label=None, **options):
        super().__init__(**options)
        self.sizes, self.label = (train, val, test), label

    def load(self):
        parts = [
            ImagesInMemory(images(n, seed=i), torch.arange(n) % 2 if self.label is None else self.label) if n else None
            for i, n in enumerate(self.sizes)
        ]
        return Splits(("even", "odd"), *parts)


def ready(**options):
    data = Few(**options)
    data.setup()
    return data


def test_a_batch_holds_the_images_labels_and_positions_asked_for():
    data = ready(batch_size=4)
    for batch in data.train_dataloader():
        assert isinstance(batch, Batch)
        assert batch.image.dtype == torch.uint8
        assert batch.label.dtype == batch.index.dtype == torch.int64
        for image, label, i in zip(batch.image, batch.label, batch.index.tolist(), strict=True):
            assert image.equal(images(10)[i])
            assert label == i % 2


def test_workers_hand_out_the_same_batches():
    alone, helped = ready(batch_size=4, num_workers=0), ready(batch_size=4, num_workers=2)
    for one, other in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))
    assert helped.train_dataloader().persistent_workers


def test_a_part_of_a_dataset_counts_its_own_positions():
    part = ImagesInMemory(images(10), torch.arange(10), rows=torch.tensor([7, 2, 9]))
    batch = part.__getitems__([2, 0])
    assert batch.label.tolist() == [9, 7]
    assert batch.index.tolist() == [2, 0]
    assert batch.image.equal(images(10)[[9, 7]])


def test_minus_one_stands_for_no_image_and_has_no_label():
    part = ImagesInMemory(images(10), torch.arange(10))
    batch = part.__getitems__([-1])
    assert is_filler(batch)
    assert (batch.label.tolist(), batch.index.tolist(), len(batch.image)) == ([-1], [-1], 1)
    assert not is_filler(part.__getitems__([0]))


def test_mean_and_std_are_those_of_the_training_images():
    data = ready(train=50)
    pixels = images(50).double().div(255).transpose(0, 1).reshape(3, -1)
    torch.testing.assert_close(torch.tensor(data.mean), pixels.mean(1).float())
    torch.testing.assert_close(torch.tensor(data.std), pixels.std(1, unbiased=False).float())


def test_the_std_of_images_of_one_colour_can_be_divided_by():
    data = ready()
    data.splits.train.image.fill_(200)
    assert data.std == (1 / 255,) * 3


def test_mean_and_std_of_images_that_must_be_decoded_are_taken_from_2048_of_them():
    class Slow(ImageDataset):
        in_memory = False
        label = torch.zeros(10_000, dtype=torch.int64)
        asked = torch.empty(0, dtype=torch.int64)

        def images(self, index):
            self.asked = torch.cat([self.asked, index])
            return torch.full((len(index), 1, 2, 2), 51, dtype=torch.uint8)

    data = Few()
    data._splits = Splits(("a",), Slow())
    assert data.mean == (0.2,)
    assert len(data.splits.train.asked.unique()) == 2048
    assert data.splits.train.asked.max() > 9_990


def test_properties_say_what_the_data_is():
    data = ready()
    assert data.class_names == ("even", "odd")
    assert data.num_classes == 2
    assert data.image_shape == (3, 4, 4)


def test_before_setup_the_properties_say_what_to_call():
    with pytest.raises(RuntimeError, match="call prepare_data"):
        Few().num_classes


@pytest.mark.parametrize("name", ["val", "test", "bank", "predict"])
def test_loaders_for_evaluation_go_in_order_and_miss_nothing(name):
    data = ready(batch_size=4)
    expected = {"val": 5, "test": 3, "bank": 10, "predict": 3}[name]
    index = torch.cat([batch.index for batch in getattr(data, f"{name}_dataloader")()])
    assert index.tolist() == list(range(expected))


def test_the_bank_leaves_out_unlabelled_images():
    data = ready(train=4, val=0, test=0, label=torch.tensor([1, -1, 0, -1]))
    (batch,) = data.bank_dataloader()
    assert batch.index.tolist() == [0, 2]
    assert batch.label.tolist() == [1, 0]


def test_the_bank_can_be_every_other_labelled_image():
    data = ready(train=6, val=0, test=0, label=torch.tensor([1, -1, 0, -1, 1, 0]))
    (batch,) = data.bank_dataloader(every=2)
    assert batch.index.tolist() == [0, 4]


def test_a_bank_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no labelled training images"):
        ready(train=2, val=0, test=0, label=torch.tensor([-1, -1])).bank_dataloader()


def test_without_a_test_split_training_images_are_predicted_and_testing_is_an_error():
    data = ready(test=0)
    assert len(next(iter(data.predict_dataloader())).index) == 10
    with pytest.raises(ValueError, match="no test images"):
        data.test_dataloader()


def test_too_few_training_images_for_a_batch_are_an_error_with_both_numbers():
    with pytest.raises(ValueError, match="batch_size is 16, but there are only 10 training images"):
        ready(batch_size=16).train_dataloader()


def test_the_global_batch_must_divide_over_the_devices():
    data = ready(batch_size=10)
    data.trainer = SimpleNamespace(world_size=4, global_rank=0, num_devices=4)
    with pytest.raises(ValueError, match="batch_size is 10 .* 4 devices: use 8 or 12"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"num_workers": 100_000}, "num_workers is 100000: it must be at least 0 and at most 256"),
    ],
)
def test_numbers_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Few(**options)


def test_images_in_memory_take_no_workers_and_others_share_the_cpus_of_the_devices(monkeypatch):
    data = ready(batch_size=4)
    assert data.train_dataloader().num_workers == 0
    monkeypatch.setattr("datamodules.base.usable_cpus", lambda: 12)
    data.splits.train.in_memory = False
    assert data._workers(data.splits.train) == 12
    data.trainer = SimpleNamespace(num_devices=4)
    assert data._workers(data.splits.train) == 3
    data.trainer = SimpleNamespace(num_devices=16)
    assert data._workers(data.splits.train) == 1


class Sees(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.validated = 0

    def setup(self, stage):
        self.shape = self.trainer.datamodule.image_shape, self.trainer.datamodule.mean

    def training_step(self, batch):
        return self.weight * batch.image.float().mean()

    def validation_step(self, batch):
        self.validated += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("val", "validated"), [(5, 2), (0, 0)])
def test_a_recipe_sees_the_properties_in_setup_and_is_validated_if_there_are_images(val, validated):
    recipe = Sees()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, num_sanity_val_steps=0, enable_model_summary=False, **options)
    trainer.fit(recipe, Few(batch_size=4, val=val))
    assert recipe.shape[0] == (3, 4, 4)
    assert recipe.validated == validated


@pytest.mark.parametrize("cls", MODULES)
def test_the_command_line_names_every_argument(cls):
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "data")
    text = parser.format_help()
    for name, parameter in inspect.signature(cls).parameters.items():
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        assert f"--data.{name}" in text


@pytest.mark.slow
def test_importing_the_package_is_light():
    code = "import sys, lightning.pytorch; old = set(sys.modules); import datamodules; print(*set(sys.modules) - old)"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.split(".")[0] for name in names} & {"sklearn", "matplotlib", "pandas", "wandb", "scipy"}
