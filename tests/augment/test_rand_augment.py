import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from recipes.augment import DeiTViews, Key, RandAugment
from recipes.augment.rand_augment import OPERATIONS

LEVELS = (-1.0, -0.9, -0.37, 0.0, 0.23, 0.51, 0.9, 0.98, 1.0)  # tenths of the magnitude
GREY = 128


def key(n, seed=0, view=0):
    return Key(seed, 0, torch.arange(n), view)


def moved(image, *affine):
    fill = (GREY,) * len(image.getbands())
    return image.transform(
        image.size, Image.AFFINE, affine, Image.BILINEAR, fillcolor=fill[0] if len(fill) == 1 else fill
    )


def solarize_add(image, added):
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def by_pil(name, image, level):
    """The operation in PIL, with the argument that timm computes from the magnitude 10 |level|, in either direction."""
    magnitude, width, height = 10 * abs(level), image.width, image.height
    size, factor = magnitude / 10, max(0.1, 1 + 0.9 * level)
    fill = (GREY,) * len(image.getbands())
    return {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
        "Rotate": lambda: image.rotate(30 * level, Image.BILINEAR, fillcolor=fill if len(fill) > 1 else fill[0]),
        "Posterize": lambda: ImageOps.posterize(image, max(1, 4 - int(size * 4))),
        "Solarize": lambda: ImageOps.solarize(image, 256 - min(256, int(size * 256))),
        "SolarizeAdd": lambda: solarize_add(image, int(size * 110)),
        "Color": lambda: ImageEnhance.Color(image).enhance(factor),
        "Contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "Brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "ShearX": lambda: moved(image, 1, 0.3 * level, 0, 0, 1, 0),
        "ShearY": lambda: moved(image, 1, 0, 0, 0.3 * level, 1, 0),
        "TranslateX": lambda: moved(image, 1, 0, 0.45 * level * width, 0, 1, 0),
        "TranslateY": lambda: moved(image, 1, 0, 0, 0, 1, 0.45 * level * height),
    }[name]()


def pictures(channels):
    """uint8 [8, C, 29, 22]: noise, few levels, two levels, constant, dark, a ramp, and small ranges."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (8, channels, 29, 22))
    noise[1] = noise[1] // 64 * 50
    noise[2] = noise[2] // 128 * 255
    noise[3] = 77
    noise[4] //= 4
    noise[5] = np.linspace(0, 255, 29 * 22).reshape(29, 22)
    noise[6] = 100 + noise[6] // 32
    noise[7] = noise[7] ** 2 // 255
    return torch.from_numpy(noise.astype(np.uint8))


def as_pil(image):
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


def as_tensor(image):
    array = torch.from_numpy(np.array(image, dtype=np.float32))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


# In levels of 255. PIL cuts results off, and ImageEnhance also rounds the grey or smooth image that it blends with.
TOLERANCE = {
    **dict.fromkeys(OPERATIONS, 1.01),
    **dict.fromkeys(("Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd"), 1e-3),
    **dict.fromkeys(("Color", "Contrast", "Sharpness"), 1.5),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_pils_at_every_magnitude(name, channels):
    images = pictures(channels)
    for level in LEVELS:
        levels = torch.full((len(images), 1, 1, 1), level)
        result = OPERATIONS[name](images.float() / 255, levels).clamp(0, 1) * 255
        for image, ours in zip(images, result, strict=True):
            theirs = as_tensor(by_pil(name, as_pil(image), level))
            assert (ours - theirs).abs().max() <= TOLERANCE[name], level


def test_large_images_are_equalised_as_by_pil():
    image = torch.randint(0, 200, (1, 3, 200, 210), generator=torch.Generator().manual_seed(0)).byte()
    result = OPERATIONS["Equalize"](image.float() / 255, torch.zeros(1, 1, 1, 1))[0] * 255
    torch.testing.assert_close(result, as_tensor(ImageOps.equalize(as_pil(image[0]))), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2)])
def test_tiny_images_are_taken(size):
    image = torch.rand(64, 3, *size)
    result = RandAugment(operations=4, p=1.0)(image, key(64))
    assert result.shape == image.shape
    assert result.isfinite().all()


def test_grey_images_have_no_colour_to_change():
    image = torch.rand(4, 1, 8, 8)
    assert torch.equal(OPERATIONS["Color"](image, torch.full((4, 1, 1, 1), 0.9)), image)


def test_all_operations_are_drawn_equally_often_half_of_the_time():
    n = 30_000
    operation, _ = RandAugment().choices(key(n))
    assert stats.binomtest(int((operation >= 0).sum()), n, 0.5).pvalue > 0.001
    counts = torch.bincount(operation[operation >= 0], minlength=15)
    assert len(counts) == 15 == len(OPERATIONS)
    assert stats.chisquare(counts).pvalue > 0.001
    assert (RandAugment(p=0.0).choices(key(n))[0] == -1).all()
    assert (RandAugment(p=1.0).choices(key(n))[0] >= 0).all()


def test_magnitudes_are_normal_and_clipped_in_a_random_direction():
    n = 30_000
    operation, level = RandAugment(magnitude=9.0, magnitude_std=0.5).choices(key(n))
    size = 10 * level.abs()
    below = size[size < 10]
    assert stats.binomtest(n - len(below), n, 1 - stats.norm.cdf(2)).pvalue > 0.001  # 10 is two deviations away
    truncated = stats.truncnorm(-18, 2, loc=9, scale=0.5)
    assert stats.kstest(below.numpy(), truncated.cdf).pvalue > 0.001
    assert stats.binomtest(int((level > 0).sum()), n, 0.5).pvalue > 0.001
    groups = [size[operation == number].numpy() for number in range(-1, 15)]
    assert stats.kruskal(*groups).pvalue > 0.001  # whatever the operation
    low = RandAugment(magnitude=0.2, magnitude_std=0.5).choices(key(n))[1].abs() * 10
    assert low.min() == 0
    assert torch.equal(RandAugment(magnitude=7.0, magnitude_std=0.0).choices(key(9))[1].abs(), torch.full((9,), 0.7))


def test_the_operations_of_an_image_are_drawn_independently():
    augment, n = RandAugment(p=1.0), 20_000
    first, second = (augment.choices(key(n).fold_in(number))[0] for number in range(2))
    table = torch.bincount(15 * first + second, minlength=225).view(15, 15)
    assert stats.chi2_contingency(table.numpy()).pvalue > 0.001


def test_an_image_goes_through_what_was_drawn_for_it_one_after_the_other():
    image, augment, names = torch.rand(400, 3, 9, 11), RandAugment(operations=3), list(OPERATIONS)
    result = augment(image, key(400))
    drawn = [augment.choices(key(400).fold_in(number)) for number in range(3)]
    untouched = 0
    for i in range(400):
        one = image[i : i + 1]
        for operation, level in drawn:
            if operation[i] >= 0:
                one = OPERATIONS[names[operation[i]]](one, level[i].view(1, 1, 1, 1)).clamp(0, 1)
        untouched += all(operation[i] < 0 for operation, _ in drawn)
        assert torch.equal(result[i : i + 1], one)
    assert untouched
    assert not torch.equal(result, augment(image, key(400, view=1)))


def test_without_augmentation_nothing_changes():
    image = torch.rand(8, 3, 9, 11)
    assert torch.equal(RandAugment(p=0.0)(image, key(8)), image)


def test_deit_draws_two_operations_of_magnitude_nine():
    augment = DeiTViews().ops[2]
    assert (augment.operations, augment.magnitude, augment.magnitude_std, augment.p) == (2, 9.0, 0.5, 0.5)
    assert DeiTViews(magnitude=5.0).ops[2].magnitude == 5.0
    assert DeiTViews(erasing=0.0).ops[3].p == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operations": 0}, "operations is 0"),
        ({"magnitude": 11.0}, "magnitude is 11.0: it must be between 0 and 10"),
        ({"magnitude_std": -1.0}, "magnitude_std is -1.0"),
        ({"magnitude_std": math.inf}, "magnitude_std is inf"),
        ({"p": 2.0}, "p is 2.0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RandAugment(**options)
