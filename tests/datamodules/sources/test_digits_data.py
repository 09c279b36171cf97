import pytest
import torch
from sklearn.datasets import load_digits

from datamodules import Digits


def ready(**options):
    data = Digits(**options)
    data.setup()
    return data


def test_the_splits_are_disjoint_and_hold_every_digit_once():
    data = ready(size=8, mode="pad")
    parts = [data.splits.train, data.splits.val, data.splits.test]
    assert [len(part) for part in parts] == [1257, 180, 360]
    rows = torch.cat([part.rows for part in parts])
    assert rows.sort().values.tolist() == list(range(1797))


def test_the_classes_are_in_proportion():
    digits = torch.from_numpy(load_digits().target).bincount() / 1797
    data = ready()
    for part in (data.splits.train, data.splits.val, data.splits.test):
        assert (part.label.bincount() - digits * len(part)).abs().max() <= 1


def test_the_split_does_not_depend_on_the_seed_of_the_run(monkeypatch):
    first = ready().splits.test.rows
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    torch.manual_seed(5)
    assert ready().splits.test.rows.equal(first)
    assert first.sort().values[:4].tolist() == [4, 5, 6, 9]  # a change makes all published numbers void


def test_the_first_images_to_validate_and_to_test_on_stand_for_all_classes():
    data = ready()
    for part in (data.splits.val, data.splits.test):
        assert (part.label[:60].bincount(minlength=10) - 6).abs().max() <= 1


def test_at_8_pixels_the_images_are_scikit_learns_stretched_to_0_to_255():
    data = ready(size=8)
    digits = load_digits()
    batch = data.splits.train.__getitems__([0, 7, 300])
    rows = data.splits.train.rows[[0, 7, 300]]
    expected = (digits.images[rows] * 255 / 16).round()
    assert batch.image[:, 0].tolist() == expected.tolist()
    assert batch.label.tolist() == digits.target[rows].tolist()


def test_padding_puts_black_around_the_digit():
    small, padded = ready(size=8), ready(size=13, mode="pad")
    image = padded.splits.test.images(torch.arange(360))
    assert image.shape == (360, 1, 13, 13)
    assert image[:, :, 2:10, 2:10].equal(small.splits.test.images(torch.arange(360)))
    assert image.sum() == image[:, :, 2:10, 2:10].sum()


def test_resizing_is_bilinear():
    image = ready(size=16).splits.test.images(torch.arange(360))
    small = ready(size=8).splits.test.images(torch.arange(360)).double()
    # Halves sit a quarter of a pixel beside each old centre: 9/16, 3/16, 3/16 and 1/16 of the four nearest.
    expected = (9 * small[..., 2, 2] + 3 * small[..., 2, 3] + 3 * small[..., 3, 2] + small[..., 3, 3]) / 16
    assert (image[..., 5, 5].double() - expected).abs().max() <= 1.5  # both are rounded


@pytest.mark.parametrize(("options", "message"), [({"size": 7}, "size is 7"), ({"mode": "crop"}, "mode is 'crop'")])
def test_impossible_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Digits(**options)
