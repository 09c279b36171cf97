import math

import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomAffine as TorchvisionAffine
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from recipes.augment import Compose, HorizontalFlip, Key, RandomAffine, RandomResizedCrop


def key(n, seed=0):
    return Key(seed, 0, torch.arange(n))


def smooth(n, channels, height, width):
    """Images whose values change little from pixel to pixel."""
    return F.resize(torch.rand(n, channels, 5, 6, generator=torch.Generator().manual_seed(1)), [height, width])


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (224, 224, (0.2, 1.0), (3 / 4, 4 / 3)),
        (60, 90, (0.08, 1.0), (3 / 4, 4 / 3)),
        (64, 200, (0.5, 1.0), (1 / 2, 1.0)),  # most tries fail, so that the central box is used too
        (200, 64, (0.5, 1.0), (1.0, 2.0)),
        (100, 100, (0.05, 0.2), (1 / 4, 4.0)),
    ],
)
def test_boxes_are_distributed_as_torchvisions(height, width, scale, ratio):
    n = 3000
    ours = RandomResizedCrop(None, scale, ratio).boxes(key(n), height, width)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = torch.tensor([TorchvisionCrop.get_params(image, list(scale), list(ratio)) for _ in range(n)]).float()
    for name, f in {
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "height": lambda b: b[:, 2],
        "width": lambda b: b[:, 3],
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "centre": lambda b: b[:, 0] + b[:, 2] / 2,
    }.items():
        assert stats.ks_2samp(f(ours), f(theirs)).pvalue > 0.001, name


def test_boxes_are_whole_pixels_inside_the_image():
    boxes = RandomResizedCrop(None, (0.01, 1.0), (0.2, 5.0)).boxes(key(20_000), 28, 40)
    top, left, height, width = boxes.unbind(1)
    assert torch.equal(boxes, boxes.round())
    assert min(top.min(), left.min()) == 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() == 28
    assert (left + width).max() == 40


@pytest.mark.parametrize("size", [None, 48, (40, 56)])
def test_crop_equals_torchvisions_resized_crop_away_from_the_box_edge(size):
    image = smooth(64, 3, 32, 36)
    crop = RandomResizedCrop(size)
    result = crop(image, key(64))
    height, width = crop.output_size(32, 36)
    assert result.shape == (64, 3, height, width)
    for i, (top, left, h, w) in enumerate(crop.boxes(key(64), 32, 36).int().tolist()):
        expected = F.resized_crop(image[i], top, left, h, w, [height, width], antialias=False)
        y, x = math.ceil(height / h / 2), math.ceil(width / w / 2)  # half a pixel of the box
        inside = (..., slice(y, height - y), slice(x, width - x))
        torch.testing.assert_close(result[i][inside], expected[inside], atol=2e-5, rtol=0)
        if (top, left, h, w) == (0, 0, 32, 36):
            torch.testing.assert_close(result[i], expected, atol=2e-5, rtol=0)


def test_crop_of_the_whole_image_is_the_image():
    image = torch.rand(4, 3, 17, 17)
    crop = RandomResizedCrop(None, (1.0, 1.0), (1.0, 1.0))
    torch.testing.assert_close(crop(image, key(4)), image, atol=2e-6, rtol=0)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_flip_mirrors_the_share_p_of_images(p):
    image = torch.rand(4000, 1, 3, 4)
    result = HorizontalFlip(p)(image, key(4000))
    mirrored = (result - F.horizontal_flip(image)).abs().amax((1, 2, 3)) < 1e-6
    same = (result - image).abs().amax((1, 2, 3)) < 1e-6
    assert torch.equal(mirrored, ~same)
    assert stats.binomtest(int(mirrored.sum()), 4000, p).pvalue > 0.001


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_affine_equals_torchvisions(size):
    image = smooth(32, 3, *size)
    affine = RandomAffine(30, 0.2, (0.7, 1.4), 20)
    result = affine(image, key(32))
    for i, (rotation, shear, x, y, scale) in enumerate(affine.poses(key(32)).tolist()):
        shift = [x * size[1], y * size[0]]
        expected = F.affine(image[i], rotation, shift, scale, [shear, 0.0], interpolation=v2.InterpolationMode.BILINEAR)
        torch.testing.assert_close(result[i], expected, atol=1e-4, rtol=0)


def test_affine_parameters_are_distributed_as_torchvisions():
    n = 3000
    ours = RandomAffine(30, 0.2, (0.7, 1.4), 20).poses(key(n))
    torch.manual_seed(0)
    size = 10_000  # torchvision rounds shifts to pixels; in a large image that is too little to see
    drawn = [TorchvisionAffine.get_params([-30, 30], [0.2, 0.2], [0.7, 1.4], [-20, 20], [size, size]) for _ in range(n)]
    theirs = torch.tensor([(a, shear[0], t[0] / size, t[1] / size, s) for a, t, s, shear in drawn])
    for column in range(5):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.001


def test_affine_leaves_the_share_1_minus_p_alone():
    poses = RandomAffine(30, 0.2, (0.7, 0.8), 20, p=0.25).poses(key(4000))
    alone = (poses == torch.tensor([0.0, 0, 0, 0, 1])).all(1)
    assert stats.binomtest(int(alone.sum()), 4000, 0.75).pvalue > 0.001


@pytest.mark.parametrize(("padding", "corner"), [("zeros", 0.0), ("border", 1.0)])
def test_affine_fills_the_outside_as_it_is_told(padding, corner):
    result = RandomAffine(0, 0, (0.5, 0.5), padding=padding)(torch.ones(2, 1, 16, 16), key(2))
    torch.testing.assert_close(result[:, :, :3, :3], torch.full((2, 1, 3, 3), corner))
    torch.testing.assert_close(result[:, :, 6:10, 6:10], torch.ones(2, 1, 4, 4))


def test_the_outside_stays_black_when_other_geometry_follows():
    ops = [RandomAffine(0, 0, (0.5, 0.5)), HorizontalFlip(0.5)]
    result = Compose(ops)(torch.ones(8, 1, 16, 16), key(8))
    assert torch.equal(result[:, :, :3, :3], torch.zeros(8, 1, 3, 3))


def test_fused_geometry_looks_where_its_parts_look_one_after_the_other():
    # On a linear ramp interpolation is exact, so that three interpolations equal one wherever none left the image.
    ramp = torch.linspace(0.2, 0.8, 64).expand(64, 64) / 2
    image = torch.stack([ramp, ramp.T]).mean(0).expand(32, 1, 64, 64)
    ops = [RandomAffine(20, 0.1, (1.2, 1.5), 10), RandomResizedCrop(48, (0.3, 0.6)), HorizontalFlip(0.5)]
    fused = Compose(ops)(image, key(32))
    single = image
    for i, op in enumerate(ops):
        single = op(single, key(32).fold_in(i))
    assert fused.shape == (32, 1, 48, 48)
    difference = (fused - single).abs().flatten(1)
    # the middle of the images: crops at the image's edge extrapolate differently
    torch.testing.assert_close(fused[..., 4:-4, 4:-4], single[..., 4:-4, 4:-4], atol=2e-3, rtol=0)
    assert difference.median() < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCrop(0), "size is 0"),
        (lambda: RandomResizedCrop((3, 0)), "size is"),
        (lambda: RandomResizedCrop(8, (0.5, 0.2)), "scale is"),
        (lambda: RandomResizedCrop(8, (0.0, 0.2)), "scale is"),
        (lambda: RandomResizedCrop(8, (0.5, 1.2)), "at most the whole image"),
        (lambda: RandomResizedCrop(8, (0.5, 1.0), (2.0, 1.0)), "ratio is"),
        (lambda: HorizontalFlip(1.5), "p is 1.5"),
        (lambda: RandomAffine(200), "degrees is 200"),
        (lambda: RandomAffine(translate=-0.1), "translate is -0.1"),
        (lambda: RandomAffine(scale=(0, 1)), "scale is"),
        (lambda: RandomAffine(shear=90), "shear is 90"),
        (lambda: RandomAffine(padding="white"), "padding is 'white'"),
        (lambda: RandomAffine(p=-1), "p is -1"),
    ],
)
def test_geometry_refuses_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
