import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules import Digits, ImageDataModule, ImagesInMemory, SemiSupervised, SemiSupervisedSampler, Splits
from recipes.cli import main
from tests.datamodules.loading.two_device_run import Recorder, fit
from tests.helpers.processes import run

SIZES = (40, 25, 60)  # images of the classes


class Three(ImageDataModule):
    """125 images of three classes, and 15 that come without a label; every image is of its own colour."""

    mean = (0.25,)
    std = (0.5,)

    def __init__(self, batch_size: int = 1, label: torch.Tensor | None = None) -> None:
        super().__init__(batch_size)
        classes = torch.cat([torch.full((n,), i) for i, n in enumerate((*SIZES, 15))])
        classes[classes == len(SIZES)] = -1
        self.label = classes[torch.randperm(140, generator=torch.Generator().manual_seed(0))]
        self.label = self.label if label is None else label
        self.prepared = 0

    @property
    def num_classes(self):
        return 3

    def prepare_data(self):
        self.prepared += 1

    def load(self):
        image = torch.arange(len(self.label), dtype=torch.uint8).view(-1, 1, 1, 1)
        few = ImagesInMemory(image[:6], torch.arange(6) % 3)
        return Splits(("a", "b", "c"), ImagesInMemory(image, self.label), few, few)


def ready(labelled_per_batch=6, batch_size=16, **options):
    options = options or {"labels_per_class": 10}
    data = SemiSupervised(Three(), labelled_per_batch, batch_size=batch_size, **options)
    data.setup()
    return data


def kept(**options):
    """The positions of the images that keep their labels."""
    return (ready(**options).splits.train.label >= 0).nonzero().flatten()


def batches(epoch=0, rank=0, devices=1, **options):
    data = ready(**options)
    data.trainer = SimpleNamespace(world_size=devices, global_rank=rank, num_devices=devices)
    sampler = data.train_dataloader().sampler
    sampler.set_epoch(epoch)
    return torch.tensor(list(sampler)).view(-1, data.batch_size // devices)


# Which labels are kept


def test_exactly_so_many_images_of_each_class_keep_their_label():
    label = ready(labels_per_class=7).splits.train.label
    assert [(label == c).sum().item() for c in range(3)] == [7, 7, 7]
    assert (label == -1).sum() == 140 - 21


def test_labels_that_are_kept_are_those_of_the_images():
    data = ready()
    for batch in data.train_dataloader():
        assert batch.image.flatten().equal(batch.index.to(torch.uint8))
        true = Three().label[batch.index]
        assert batch.label.equal(torch.where(batch.label >= 0, true, -1))


@pytest.mark.parametrize(("fraction", "expected"), [(0.2, [8, 5, 12]), (0.001, [1, 1, 1]), (1.0, list(SIZES))])
def test_a_fraction_holds_the_classes_in_proportion_and_misses_none(fraction, expected):
    label = ready(fraction=fraction, labelled_per_batch=1).splits.train.label
    assert [(label == c).sum().item() for c in range(3)] == expected


def test_the_choice_is_the_same_in_every_run_whatever_its_seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    torch.manual_seed(1)
    first = kept(labels_per_class=3)
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    torch.manual_seed(2)
    assert kept(labels_per_class=3).equal(first)
    label = Three().label
    drawn = (label >= 0).nonzero().flatten()[np.random.RandomState(0).permutation(sum(SIZES))].tolist()
    assert first.tolist() == sorted(i for c in range(3) for i in [i for i in drawn if label[i] == c][:3])


def test_fewer_labels_are_among_more_labels():
    sets = [set(kept(labels_per_class=n).tolist()) for n in (1, 3, 10, 25)]
    assert all(few < more for few, more in pairwise(sets))


def test_the_images_that_keep_their_labels_are_not_the_first_of_their_class():
    first = [(Three().label == c).nonzero()[:10].flatten() for c in range(3)]
    assert not kept(labels_per_class=10).equal(torch.cat(first).sort().values)


def test_the_base_keeps_its_labels():
    data = ready()
    assert data.base.splits.train.label.equal(Three().label)


def test_everything_else_is_that_of_the_base():
    data = SemiSupervised(Three(), 6, labels_per_class=10, batch_size=16)
    assert data.num_classes == 3  # before setup, as the command needs it
    data.prepare_data()
    data.setup()
    assert data.base.prepared == 1
    assert data.class_names == ("a", "b", "c")
    assert (data.mean, data.std, data.image_shape) == ((0.25,), (0.5,), (1, 1, 1))
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert torch.cat([batch.label for batch in loader]).tolist() == [0, 1, 2, 0, 1, 2]


def test_the_bank_is_the_images_that_keep_their_labels():
    data = ready(labels_per_class=10)
    bank = list(data.bank_dataloader())
    assert torch.cat([batch.index for batch in bank]).equal(kept(labels_per_class=10))
    assert torch.cat([batch.label for batch in bank]).min() >= 0


# What is in a batch


def test_every_batch_holds_so_many_labelled_images_and_none_twice():
    for batch in ready(labelled_per_batch=6, batch_size=16).train_dataloader():
        assert (batch.label >= 0).sum() == 6
        assert len(batch.index.unique()) == len(batch.index) == 16


def test_an_epoch_is_one_pass_over_the_unlabelled_images():
    made = batches(labelled_per_batch=6)
    others = made[~torch.isin(made, kept(labels_per_class=10))]
    assert len(made) == 110 // 10
    assert len(others.unique()) == len(others) == 110


def test_labelled_images_come_once_in_each_pass_and_in_another_order_each_time():
    labelled = kept(labels_per_class=10)
    made = batches(labelled_per_batch=7)  # four batches of the thirty in a pass
    passes = [part[torch.isin(part, labelled)].tolist() for part in made.split(4)]
    assert len(passes) == 3
    assert all(len(set(part)) == len(part) == 28 for part in passes)
    assert len({tuple(part) for part in passes}) == 3


def test_all_labelled_images_are_used():
    seen = torch.cat([batches(epoch, labelled_per_batch=7).flatten() for epoch in range(5)])
    assert torch.isin(kept(labels_per_class=10), seen).all()


def test_the_labelled_images_are_not_shuffled_as_the_unlabelled_are():
    made = SemiSupervisedSampler(torch.arange(16), torch.arange(16, 32), 4, 8, 1, 0)
    order = torch.tensor(list(made)).view(4, 2, 4)
    assert order.sort(-1).values.unique().equal(torch.arange(32))
    labelled, others = (torch.tensor([i for i in made if (i < 16) is first]) for first in (True, False))
    assert not others.equal(labelled + 16)


def test_batches_of_labelled_images_alone_go_once_over_them():
    made = batches(labelled_per_batch=8, batch_size=8)
    assert made.shape == (3, 8)
    assert len(made.unique()) == 24
    assert torch.isin(made, kept(labels_per_class=10)).all()


def test_images_that_never_had_a_label_are_among_the_unlabelled():
    never = (Three().label == -1).nonzero().flatten()
    assert torch.isin(never, batches()).all()


def test_the_order_depends_on_the_seed_and_the_epoch_alone(monkeypatch):
    orders = set()
    for seed in ("0", "1"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        for epoch in (0, 1):
            torch.manual_seed(epoch)
            made = batches(epoch)
            torch.rand(3)
            assert batches(epoch).equal(made)
            orders.add(tuple(made.flatten().tolist()))
    assert len(orders) == 4


@pytest.mark.parametrize("devices", [2, 4])
def test_the_ranks_batches_in_order_are_the_global_batches(devices):
    ranks = [batches(3, rank, devices, labelled_per_batch=6) for rank in range(devices)]
    assert torch.cat(ranks, dim=1).equal(batches(3, labelled_per_batch=6))


@pytest.mark.parametrize(("labelled_per_batch", "devices"), [(6, 2), (4, 4), (8, 8), (10, 2), (16, 4), (12, 4)])
def test_each_device_gets_its_share_of_the_labelled_images(labelled_per_batch, devices):
    labelled = kept(labels_per_class=10)
    for rank in range(devices):
        made = batches(0, rank, devices, labelled_per_batch=labelled_per_batch)
        assert (torch.isin(made, labelled).sum(1) == labelled_per_batch // devices).all()


def test_labelled_images_that_do_not_divide_are_dealt_as_evenly_as_they_can_be():
    labelled = kept(labels_per_class=10)
    counts = [torch.isin(batches(0, rank, 4, labelled_per_batch=6), labelled).sum(1) for rank in range(4)]
    assert torch.stack(counts).sum(0).eq(6).all()
    assert set(torch.stack(counts).flatten().tolist()) == {1, 2}


def test_skipping_leaves_out_global_batches_and_not_of_the_length():
    sampler = ready().train_dataloader().sampler
    whole = list(sampler)
    sampler.skip = 2
    assert list(sampler) == whole[32:]
    assert len(sampler) == len(whole)


def record(out, devices, steps, checkpoint=None):
    recorder = Recorder()
    data = SemiSupervised(Digits(), 4, labels_per_class=2, batch_size=200)
    trainer = fit(out, recorder, data, devices, steps, checkpoint)
    (out / f"rank{trainer.global_rank}.json").write_text(json.dumps(recorder.seen["train"]))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_that_was_killed_on_one_device_goes_on_with_two(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    run(record, tmp_path / "one", 1, 8)  # six steps to an epoch
    run(record, tmp_path / "two", 2, 8, tmp_path / "one" / "three.ckpt", processes=2)
    seen = [
        json.loads((tmp_path / name).read_text()) for name in ("one/rank0.json", "two/rank0.json", "two/rank1.json")
    ]
    assert len(seen[0]) == 8
    assert [first + second for first, second in zip(*seen[1:], strict=True)] == seen[0][3:]


# Mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "of labels_per_class and fraction, neither is given: give one"),
        ({"labels_per_class": 2, "fraction": 0.5}, "of labels_per_class and fraction, both are given: give one"),
        ({"labels_per_class": 0}, "labels_per_class is 0: it must be at least 1"),
        ({"fraction": 0.0}, "fraction is 0.0: it must be above 0"),
        ({"fraction": 1.5}, "fraction is 1.5: it must be above 0 and at most 1"),
        ({"labels_per_class": 2, "labelled_per_batch": 0}, "labelled_per_batch is 0: it must be between 1 and .* 16"),
        ({"labels_per_class": 2, "labelled_per_batch": 17}, "labelled_per_batch is 17: it must be between 1 and .* 16"),
        ({"labels_per_class": 2, "batch_size": 0}, "batch_size is 0"),
        ({"labels_per_class": 2, "num_workers": -1}, "num_workers is -1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        SemiSupervised(**{"base": Three(), "labelled_per_batch": 4, "batch_size": 16, **options})


def test_more_labels_than_a_class_has_are_refused_with_its_name():
    with pytest.raises(ValueError, match="class b has 25 labelled images, but 26 must keep their label"):
        ready(labels_per_class=26)


def test_a_class_without_a_labelled_image_is_refused():
    with pytest.raises(ValueError, match="class c has 0 labelled images, but 1 must keep their label"):
        SemiSupervised(Three(label=torch.arange(20) % 2), 4, fraction=0.1, batch_size=16).setup()


def test_images_without_labels_are_refused():
    with pytest.raises(ValueError, match="Three has no labelled training images: SemiSupervised needs"):
        SemiSupervised(Three(label=torch.full((20,), -1)), 4, labels_per_class=1, batch_size=16).setup()


def test_more_labelled_images_in_a_batch_than_there_are_are_refused():
    with pytest.raises(ValueError, match="labelled_per_batch is 7, but only 6 training images are labelled"):
        ready(labels_per_class=2, labelled_per_batch=7).train_dataloader()


def test_more_unlabelled_images_in_a_batch_than_there_are_are_refused():
    data = SemiSupervised(Three(label=torch.arange(60) % 3), 6, fraction=1.0, batch_size=16)
    data.setup()
    with pytest.raises(ValueError, match="takes 10 unlabelled images, but there are only 0"):
        data.train_dataloader()


def test_a_batch_that_does_not_divide_over_the_devices_is_refused():
    with pytest.raises(ValueError, match="batch_size is 15 .* 2 devices: use 14 or 16"):
        batches(devices=2, labelled_per_batch=5, batch_size=15)


# The command


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_command_wraps_data_by_its_options(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = {"": "SemiSupervised", ".base": "Digits", ".base.size": 8, ".labels_per_class": 10, ".labelled_per_batch": 8}
    options = [part for name, value in data.items() for part in (f"--data{name}", str(value))]
    options += ["--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu"]
    main(["fit", "--model", "Supervised", "--model.encoder", "ConvNet", *options])
    assert "test/accuracy" in capsys.readouterr().out
