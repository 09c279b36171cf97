import pytest
import torch

from datamodules import Digits, Subset
from datamodules.base import ImageDataModule, Splits
from datamodules.loading.dataset import ImagesInMemory


def read(**options):
    data = Subset(Digits(size=8), **options)
    data.setup()
    return data


def test_labels_are_the_places_of_the_classes_in_the_list():
    data, whole = read(classes=["7", "2", "5"]), Digits(size=8)
    whole.setup()
    assert data.num_classes == 3
    assert data.class_names == ("7", "2", "5")
    for name in ("train", "val", "test"):
        ours, theirs = getattr(data.splits, name), getattr(whole.splits, name)
        rows = torch.isin(theirs.label, torch.tensor([7, 2, 5])).nonzero().flatten()
        assert torch.equal(torch.tensor([7, 2, 5])[ours.label], theirs.label[rows])
        assert torch.equal(ours.images(torch.arange(len(ours))), theirs.images(rows))


@pytest.mark.parametrize("per_class", [1, 10])
def test_so_many_training_images_of_each_class_stay_and_all_to_measure_on(per_class):
    data, whole = read(per_class=per_class), read()
    assert torch.bincount(data.splits.train.label).tolist() == [per_class] * 10
    assert len(data.splits.val) == len(whole.splits.val)
    assert len(data.splits.test) == len(whole.splits.test)


def test_images_of_a_small_subset_are_in_the_larger_one_and_always_the_same():
    def images(per_class):
        train = read(per_class=per_class).splits.train
        return {tuple(image.flatten().tolist()) for image in train.images(torch.arange(len(train)))}

    assert images(3) < images(12)
    assert images(3) == images(3)


def test_a_class_with_fewer_images_keeps_all():
    label = torch.tensor([0, 0, 0, 0, 1, -1])

    class Few(ImageDataModule):
        def load(self):
            return Splits(("a", "b"), ImagesInMemory(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), label))

    data = Subset(Few(), per_class=3)
    data.setup()
    assert data.splits.train.label.tolist() == [0, 0, 0, 1]
    assert data.splits.val is None


def test_a_class_left_out_has_no_training_images_but_keeps_its_label_and_tests():
    whole, data = read(), read(leave_out=["3"])
    assert data.splits.class_names == whole.splits.class_names
    left = whole.splits.train.label != 3
    assert data.splits.train.label.tolist() == whole.splits.train.label[left].tolist()
    every, rest = torch.arange(len(left))[left], torch.arange(int(left.sum()))
    assert torch.equal(data.splits.train.images(rest), whole.splits.train.images(every))
    for part in ("val", "test"):
        assert getattr(data.splits, part).label.tolist() == getattr(whole.splits, part).label.tolist()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classes": ["2", "twelve"]}, "no class 'twelve'; it has 0, 1, 2"),
        ({"classes": ["2", "2"]}, "each class once"),
        ({"classes": []}, "each class once"),
        ({"per_class": 0}, "per_class is 0"),
        ({"leave_out": ["three"]}, "leave_out names 'three'; the classes are 0, 1, 2"),
    ],
)
def test_bad_input_is_named(options, said):
    with pytest.raises(ValueError, match=said):
        read(**options)
