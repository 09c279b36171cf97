import itertools

import pytest
import torch
from scipy import stats
from sklearn.datasets import load_sample_images
from torchvision.transforms import ColorJitter as TorchvisionJitter
from torchvision.transforms.v2 import functional as F

from recipes.augment import ColorJitter, Compose, Grayscale, Intensity, Key
from recipes.augment.colour import _turn


def key(n, seed=0):
    return Key(seed, 0, torch.arange(n))


def muted(n, channels=3, seed=0):
    """Images in [0.35, 0.6], which mild changes leave in [0, 1]."""
    return 0.35 + 0.25 * torch.rand(n, channels, 9, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "column", "function"),
    [
        ("brightness", 0, F.adjust_brightness),
        ("contrast", 1, F.adjust_contrast),
        ("saturation", 2, F.adjust_saturation),
    ],
)
def test_each_factor_equals_torchvisions(name, column, function, channels):
    image = muted(32, channels)
    jitter = ColorJitter(**{name: 0.5})
    result = jitter(image, key(32))
    factors = jitter.factors(key(32))[:, column].tolist()
    expected = torch.stack([function(one, factor) for one, factor in zip(image, factors)])
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
    assert (expected - image).abs().max() > 0.01 or (name == "saturation" and channels == 1)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_factor_clips_as_torchvision_does(name):
    image = torch.rand(32, 3, 9, 7)
    jitter = ColorJitter(**{name: 0.9})
    factors = jitter.factors(key(32))[:, ("brightness", "contrast", "saturation").index(name)].tolist()
    expected = torch.stack([getattr(F, f"adjust_{name}")(one, f) for one, f in zip(image, factors)])
    torch.testing.assert_close(jitter(image, key(32)), expected, atol=1e-6, rtol=0)


def test_the_three_factors_together_equal_torchvisions_in_any_order():
    image = muted(16)
    jitter = ColorJitter(0.2, 0.2, 0.4)
    result = jitter(image, key(16))
    functions = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for order in itertools.permutations(range(3)):
        for i, factors in enumerate(jitter.factors(key(16)).tolist()):
            expected = image[i]
            for which in order:
                expected = functions[which](expected, factors[which])
            # torchvision's weights of grey sum to 0.9999, so that even its own orders differ by this much
            torch.testing.assert_close(result[i], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_that_is_added_shifts_all_values_and_clips_once(channels):
    image = torch.rand(64, channels, 9, 7)
    jitter = ColorJitter(0.4, add_brightness=True)
    offset = jitter.factors(key(64))[:, 0]
    assert -0.4 <= offset.min() < -0.3
    assert 0.3 < offset.max() <= 0.4
    expected = (image + offset[:, None, None, None]).clamp(0, 1)
    torch.testing.assert_close(jitter(image, key(64)), expected, atol=1e-6, rtol=0)


def test_added_brightness_commutes_with_the_other_changes():
    image = muted(16)
    result = ColorJitter(0.1, 0.2, 0.3, 0.05, add_brightness=True)(image, key(16))
    offset = ColorJitter(0.1, add_brightness=True).factors(key(16))[:, 0]  # the draw that is else the factor's
    without = ColorJitter(0.0, 0.2, 0.3, 0.05)
    expected = without(image, key(16)) + offset[:, None, None, None]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def apply_in_order(image, factors, order):
    """The four changes one after the other, none clipped; hue as a rotation by its definition."""
    grey_of = torch.tensor([0.2989, 0.587, 0.114])
    brightness, contrast, saturation, hue = factors
    for which in order:
        grey = (grey_of[:, None, None] * image).sum(0, keepdim=True)
        if which == 0:
            image = brightness * image
        elif which == 1:
            image = contrast * image + (1 - contrast) * grey.mean()
        elif which == 2:
            image = saturation * image + (1 - saturation) * grey
        else:
            axis = torch.full((3,), 3**-0.5)
            cross = torch.linalg.cross(torch.eye(3), axis.expand(3, 3)).T.neg()  # v -> axis x v
            turn = torch.linalg.matrix_exp(2 * torch.pi * hue * cross)
            image = torch.einsum("ij,jhw->ihw", turn, image)
    return image


def test_the_order_is_one_of_the_24_and_hue_is_equally_likely_at_each_place():
    n = 2000
    image = muted(1).expand(n, -1, -1, -1)
    jitter = ColorJitter(0.2, 0.2, 0.4, 0.1)
    result = jitter(image, key(n))
    # hue, contrast, saturation: where hue stands against the other two is all that matters
    cases = {"first": (3, 1, 2), "last": (1, 2, 3), "after contrast": (1, 3, 2), "after saturation": (2, 3, 1)}
    counts = dict.fromkeys(cases, 0)
    for i, factors in enumerate(jitter.factors(key(n))):
        errors = {
            c: (apply_in_order(image[i], factors, (0, *order)) - result[i]).abs().max() for c, order in cases.items()
        }
        best, second = sorted(errors, key=errors.get)[:2]
        assert errors[best] < 2e-4
        counts[best] += errors[second] > errors[best] + 2e-5  # with factors near 1 the orders give nearly the same
    told_apart = sum(counts.values()).item()
    assert told_apart > n / 5
    shares = torch.tensor([2, 2, 1, 1], dtype=torch.float64) / 6
    assert stats.chisquare([int(count) for count in counts.values()], told_apart * shares).pvalue > 0.001


def test_all_24_orders_come_down_to_the_place_of_hue():
    image, factors = muted(1)[0], (1.1, 0.8, 1.3, 0.07)
    groups = {}
    for order in itertools.permutations(range(4)):
        place = (order.index(3) < order.index(1), order.index(3) < order.index(2))
        groups.setdefault(place, []).append(apply_in_order(image, factors, order))
    assert len(groups) == 4
    for results in groups.values():
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], atol=1e-4, rtol=0)


def test_hue_is_a_rotation_that_keeps_greys():
    turn = _turn(torch.tensor([0.1, -0.3, 0.5]))
    torch.testing.assert_close(turn @ turn.mT, torch.eye(3).expand(3, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(turn @ torch.ones(3), torch.ones(3, 3))
    torch.testing.assert_close(torch.linalg.det(turn), torch.ones(3))


@pytest.mark.parametrize("hue", [1 / 3, -1 / 3])
def test_hue_equals_torchvisions_for_a_third_of_the_circle(hue):
    image = torch.rand(8, 3, 6, 6)
    result = torch.einsum("ij,bjhw->bihw", _turn(torch.tensor([hue]))[0], image)
    torch.testing.assert_close(result, F.adjust_hue(image, hue), atol=1e-5, rtol=0)


@pytest.mark.parametrize("hue", [0.05, 0.1, 0.2])
def test_hue_is_nearer_to_torchvisions_than_no_hue_is_and_than_the_opposite(hue):
    image = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for h in (hue, -hue):
        expected = F.adjust_hue(image, h)
        error, none, opposite = (
            (torch.einsum("ij,bjhw->bihw", _turn(torch.tensor([x]))[0], image).clamp(0, 1) - expected).abs().mean()
            for x in (h, 0.0, -h)
        )
        assert error < 0.9 * none
        assert error < 0.5 * opposite


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_on_photographs_the_whole_jitter_differs_from_torchvisions_by_up_to_a_fifth(strength):
    photos = torch.stack([torch.from_numpy(photo.copy()) for photo in load_sample_images().images])
    photos = F.resize(photos.permute(0, 3, 1, 2).float() / 255, [40, 60])
    image = photos.repeat(50, 1, 1, 1)
    jitter = ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    result = jitter(image, key(100))
    functions = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    orders = itertools.cycle(itertools.permutations(range(4)))
    expected = []
    for one, factors in zip(image, jitter.factors(key(100)).tolist()):
        for which in next(orders):
            one = functions[which](one, factors[which])
        expected.append(one)
    expected = torch.stack(expected)
    ratio = (result - expected).square().mean().sqrt() / (expected - image).square().mean().sqrt()
    assert 0.12 < ratio < 0.22


@pytest.mark.parametrize(("b", "c", "s", "h"), [(0.8, 0.8, 0.8, 0.2), (0.4, 0.4, 0.2, 0.1), (1.5, 0.4, 0.1, 0.5)])
def test_factors_are_distributed_as_torchvisions(b, c, s, h):
    n = 3000
    ours = ColorJitter(b, c, s, h).factors(key(n))
    jitter = TorchvisionJitter(b, c, s, h)
    torch.manual_seed(0)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    theirs = torch.tensor([TorchvisionJitter.get_params(*ranges)[1:] for _ in range(n)])
    for column, (low, high) in enumerate(ranges):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.001
        width = high - low
        assert low - 1e-6 <= ours[:, column].min() < low + 0.01 * width
        assert high - 0.01 * width < ours[:, column].max() <= high + 1e-6


def test_jitter_leaves_the_share_1_minus_p_alone():
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
    image = muted(2000)
    same = (jitter(image, key(2000)) - image).abs().amax((1, 2, 3)) < 1e-5
    assert torch.equal(same, (jitter.factors(key(2000)) == torch.tensor([1.0, 1, 1, 0])).all(1))
    assert stats.binomtest(int(same.sum()), 2000, 0.2).pvalue > 0.001


def test_grayscale_equals_torchvisions_on_the_share_p():
    image = torch.rand(2000, 3, 4, 4)
    result = Grayscale(0.3)(image, key(2000))
    grey = F.rgb_to_grayscale(image, num_output_channels=3)
    fired = (result - grey).abs().amax((1, 2, 3)) < 1e-6
    torch.testing.assert_close(result[~fired], image[~fired])
    assert stats.binomtest(int(fired.sum()), 2000, 0.3).pvalue > 0.001


def test_saturation_hue_and_grey_leave_grey_images_alone():
    image = torch.rand(16, 1, 5, 5)
    result = Compose([ColorJitter(saturation=0.8, hue=0.4), Grayscale(1.0)])(image, key(16))
    torch.testing.assert_close(result, image)


def test_grey_pixels_stay_grey_under_hue_and_saturation():
    image = (0.2 + 0.6 * torch.rand(16, 1, 5, 5)).expand(-1, 3, -1, -1)
    result = ColorJitter(saturation=0.8, hue=0.4)(image, key(16))
    torch.testing.assert_close(result, image, atol=2e-4, rtol=0)


def test_fused_colour_equals_its_parts_one_after_the_other():
    image = muted(64)
    ops = [
        ColorJitter(0.2, 0.2, 0.3, 0.05),
        Intensity(0.1, 0.05),
        ColorJitter(0.1, 0.3, 0.3, 0.05, p=0.5),
        Grayscale(0.5),
    ]
    fused = Compose(ops)(image, key(64))
    single = image
    for i, op in enumerate(ops):
        single = op(single, key(64).fold_in(i))
    torch.testing.assert_close(fused, single, atol=2e-6, rtol=0)
    assert single.min() > 0
    assert single.max() < 1


@pytest.mark.parametrize("channels", [1, 3])
def test_intensity_multiplies_and_adds_within_its_ranges(channels):
    n = 2000
    image = torch.tensor([0.4, 0.6]).expand(n, channels, 1, 2)
    result = Intensity(0.3, 0.1, p=0.7)(image, key(n))
    gain = (result[:, 0, 0, 1] - result[:, 0, 0, 0]) / 0.2
    offset = result[:, 0, 0, 0] - 0.4 * gain
    assert torch.equal(result, result[:, :1].expand_as(result))
    fired = (gain - 1).abs() > 1e-5
    assert stats.binomtest(int(fired.sum()), n, 0.7).pvalue > 0.001
    assert stats.kstest(gain[fired].numpy(), stats.uniform(0.7, 0.6).cdf).pvalue > 0.001
    assert stats.kstest(offset[fired].numpy(), stats.uniform(-0.1, 0.2).cdf).pvalue > 0.001


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ColorJitter(brightness=-1), "brightness is -1"),
        (lambda: ColorJitter(contrast=-1), "contrast is -1"),
        (lambda: ColorJitter(saturation=float("nan")), "saturation is nan"),
        (lambda: ColorJitter(hue=0.6), "hue is 0.6"),
        (lambda: ColorJitter(p=2), "p is 2"),
        (lambda: Grayscale(-0.1), "p is -0.1"),
        (lambda: Intensity(gain=-1), "gain is -1"),
        (lambda: Intensity(offset=-1), "offset is -1"),
    ],
)
def test_colour_refuses_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
