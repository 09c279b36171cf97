import pytest
import torch
from scipy import stats
from torchvision.transforms import GaussianBlur as TorchvisionBlur
from torchvision.transforms.v2 import functional as F

from recipes.augment import GaussianBlur, Key, Solarize


def key(n, seed=0):
    return Key(seed, 0, torch.arange(n))


@pytest.mark.parametrize(
    ("channels", "height", "width", "kernel"), [(3, 32, 32, None), (1, 8, 8, None), (3, 20, 31, 9)]
)
def test_blur_equals_torchvisions(channels, height, width, kernel):
    image = torch.rand(24, channels, height, width)
    blur = GaussianBlur(p=0.7, kernel_size=kernel)
    result = blur(image, key(24))
    size = kernel or 3
    for i, sigma in enumerate(blur.sigmas(key(24)).tolist()):
        expected = F.gaussian_blur(image[i], [size, size], [sigma, sigma]) if sigma else image[i]
        torch.testing.assert_close(result[i], expected, atol=2e-6, rtol=0)


def test_blur_reaches_over_a_tenth_of_a_large_image():
    point = torch.zeros(1, 1, 224, 224)
    point[:, :, 100, 100] = 1
    result = GaussianBlur((2.0, 2.0), p=1.0)(point, key(1))
    torch.testing.assert_close(result[0], F.gaussian_blur(point[0], [23, 23], [2.0, 2.0]), atol=1e-6, rtol=0)
    row = result[0, 0, 100].nonzero()[:, 0]
    assert (row.min(), row.max()) == (89, 111)


def test_widths_are_distributed_as_torchvisions_on_the_share_p():
    n = 3000
    sigma = GaussianBlur((0.1, 2.0), p=0.4).sigmas(key(n))
    fired = sigma > 0
    assert stats.binomtest(int(fired.sum()), n, 0.4).pvalue > 0.001
    torch.manual_seed(0)
    theirs = [TorchvisionBlur.get_params(0.1, 2.0) for _ in range(n)]
    assert stats.ks_2samp(sigma[fired], theirs).pvalue > 0.001


def test_blur_leaves_its_input_alone():
    image = torch.rand(8, 3, 16, 16)
    before = image.clone()
    GaussianBlur(p=0.5)(image, key(8))
    assert torch.equal(image, before)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_solarize_equals_torchvisions_on_the_share_p(threshold):
    image = torch.randint(0, 256, (2000, 3, 4, 4), dtype=torch.uint8)
    image[:, :, 0, 0] = torch.tensor([255, 127, 128], dtype=torch.uint8)  # at and around the threshold
    result = Solarize(threshold, p=0.3)(image, key(2000))
    floats = F.to_dtype(image, torch.float32, scale=True)
    expected = F.solarize(floats, threshold)
    fired = torch.isclose(result, expected, atol=1e-6).flatten(1).all(1)
    torch.testing.assert_close(result[~fired], floats[~fired])
    assert stats.binomtest(int(fired.sum()), 2000, 0.3).pvalue > 0.001


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianBlur((0.0, 1.0)), "sigma is"),
        (lambda: GaussianBlur((2.0, 1.0)), "sigma is"),
        (lambda: GaussianBlur(p=1.1), "p is 1.1"),
        (lambda: GaussianBlur(kernel_size=4), "kernel_size is 4"),
        (lambda: GaussianBlur(kernel_size=0), "kernel_size is 0"),
        (lambda: GaussianBlur(p=1.0, kernel_size=9)(torch.rand(1, 1, 4, 8), key(1)), "kernel_size is 9"),
        (lambda: Solarize(threshold=128), "threshold is 128"),
        (lambda: Solarize(p=-1), "p is -1"),
    ],
)
def test_filters_refuse_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
