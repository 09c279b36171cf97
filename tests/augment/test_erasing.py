import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomErasing as TorchvisionErasing

from recipes.augment import Key, RandomErasing
from recipes.augment.keys import normal


def key(n, seed=0):
    return Key(seed, 0, torch.arange(n))


@pytest.mark.parametrize("p", [1.0, 0.4])
@pytest.mark.parametrize("ratio", [(0.3, 3.3), (0.3, 1.0)])
def test_rectangles_are_drawn_as_torchvisions(ratio, p):
    n, height, width = 4000, 40, 28
    boxes = RandomErasing(p, (0.02, 0.33), ratio).boxes(key(n), height, width)
    boxes = boxes[boxes[:, 2] > 0]
    assert stats.binomtest(len(boxes), n, p).pvalue > 0.001
    image = torch.zeros(1, height, width)
    torch.manual_seed(0)
    theirs = torch.tensor(
        [TorchvisionErasing.get_params(image, (0.02, 0.33), ratio, [0.0])[:4] for _ in range(n)], dtype=torch.float
    )
    for name, of in {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 2] / b[:, 3],
        "row": lambda b: b[:, 0] / (height - b[:, 2]),
        "column": lambda b: b[:, 1] / (width - b[:, 3]),
    }.items():
        assert stats.ks_2samp(of(boxes), of(theirs)).pvalue > 0.001, name
    assert (boxes[:, 0] + boxes[:, 2]).max() == height  # down to the last row and column
    assert (boxes[:, 1] + boxes[:, 3]).max() == width
    assert boxes[:, :2].min() == 0


def test_a_quarter_of_the_images_lose_one_rectangle_and_nothing_else():
    n, erasing = 2000, RandomErasing()
    image = torch.full((n, 3, 12, 16), 2 / 3)
    before = image.clone()
    result = erasing(image, key(n))
    boxes = erasing.boxes(key(n), 12, 16).long()
    assert torch.equal(image, before)
    erased = (result != image).any(1)  # [n, 12, 16]; noise is never 2/3, or next to never
    assert stats.binomtest(int(erased.flatten(1).any(1).sum()), n, 0.25).pvalue > 0.001
    for mask, (top, left, height, width) in zip(erased, boxes.tolist(), strict=True):
        assert mask.sum() == height * width
        assert mask[top : top + height, left : left + width].all()


def test_noise_is_normal_and_another_for_each_pixel_channel_and_image():
    n = 60
    erasing = RandomErasing(p=1.0, mean=0.4, std=0.1)
    image = torch.full((n, 3, 20, 20), -1.0)  # cannot be noise
    result = erasing(image, key(n))
    noise = [picture[:, (picture >= 0).all(0)] for picture in result]
    values = torch.cat([part.flatten() for part in noise])
    assert stats.kstest(values.numpy(), stats.norm(0.4, 0.1).cdf).pvalue > 0.001
    assert len(values.unique()) > 0.99 * len(values)
    red, green, _ = torch.cat(noise, 1)
    assert abs(stats.pearsonr(red, green).statistic) < 4 / len(red) ** 0.5


def test_noise_stays_between_black_and_white():
    result = RandomErasing(p=1.0)(torch.full((200, 1, 20, 20), 0.3), key(200))
    assert result.min() == 0
    assert result.max() == 1


def test_without_deviation_the_rectangle_has_one_colour():
    result = RandomErasing(p=1.0, mean=0.0, std=0.0)(torch.ones(50, 3, 16, 16), key(50))
    assert set(result.unique().tolist()) == {0.0, 1.0}
    share = (result == 0).float().mean().item()
    assert 0.1 < share < 0.25  # the mean of the areas is 0.18 before rounding and tries that fail


def test_a_rectangle_that_never_fits_is_left_out():
    image = torch.rand(30, 3, 8, 8)
    assert torch.equal(RandomErasing(p=1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0))(image, key(30)), image)
    assert torch.equal(RandomErasing(p=0.0)(image, key(30)), image)
    assert torch.equal(RandomErasing(p=1.0)(image[:, :, :1, :1], key(30)), image[:, :, :1, :1])


def test_a_random_number_of_zero_gives_finite_noise(monkeypatch):
    monkeypatch.setattr("recipes.augment.keys.uniform", lambda key, n: torch.zeros(len(key.index), n))
    drawn = normal(key(2), 3)
    torch.testing.assert_close(drawn, torch.full((2, 3), stats.norm.ppf(2.0**-25)), check_dtype=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 1.5}, "p is 1.5"),
        ({"scale": (0.5, 0.1)}, "scale is"),
        ({"scale": (0.1, 1.1)}, "a rectangle is at most the whole image"),
        ({"ratio": (0.0, 1.0)}, "ratio is"),
        ({"mean": 1.5}, "mean is 1.5"),
        ({"std": -0.1}, "std is -0.1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RandomErasing(**options)
