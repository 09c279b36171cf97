import pytest
import torch
from torchvision.transforms.v2 import functional as F

from recipes.augment import Normalize

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def normalize(mean=MEAN, std=STD):
    module = Normalize()
    module.set(mean, std)
    return module


def test_normalize_equals_torchvisions_for_uint8_and_float():
    image = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    floats = F.to_dtype(image, torch.float32, scale=True)
    expected = F.normalize(floats, list(MEAN), list(STD))
    torch.testing.assert_close(normalize()(image), expected)
    torch.testing.assert_close(normalize()(floats), expected)


def test_normalize_is_the_identity_on_floats_until_it_is_set():
    image = torch.rand(2, 3, 4, 4)
    assert torch.equal(Normalize()(image), image)


def test_one_number_is_used_for_all_channels_and_grey_images_use_the_first():
    module = normalize((0.13,), (0.31,))
    assert torch.equal(module.mean, torch.full((3,), 0.13))
    grey, rgb = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(module(grey), (grey - 0.13) / 0.31)
    torch.testing.assert_close(module(rgb), (rgb - 0.13) / 0.31)
    torch.testing.assert_close(normalize()(grey), (grey - MEAN[0]) / STD[0])


def test_mean_and_std_travel_in_the_state_dict():
    copy = Normalize()
    copy.load_state_dict(normalize().state_dict())
    assert torch.equal(copy.mean, torch.tensor(MEAN))
    assert torch.equal(copy.std, torch.tensor(STD))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_result_has_torchs_default_type_and_the_input_is_left_alone(dtype):
    module = normalize().to(dtype)
    image = torch.rand(2, 3, 4, 4)
    before = image.clone()
    torch.set_default_dtype(dtype)
    try:
        result = module(image)
        from_bytes = module((image * 255).to(torch.uint8))
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.dtype == from_bytes.dtype == dtype
    assert torch.equal(image, before)


def test_gradients_flow_to_float_images():
    image = torch.rand(1, 3, 2, 2, requires_grad=True)
    normalize()(image).sum().backward()
    torch.testing.assert_close(image.grad[0, :, 0, 0], 1 / torch.tensor(STD))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: Normalize().set((0.5, 0.5), (0.2, 0.2)), "mean has 2 and std 2"),
        (lambda: Normalize().set((0.5,), (0.2, 0.2, 0.2)), "mean has 1 and std 3"),
        (lambda: Normalize().set((0.5,), (0.0,)), "positive"),
        (lambda: Normalize()(torch.rand(3, 8, 8)), r"\[B, C, H, W\]"),
        (lambda: Normalize()(torch.rand(1, 2, 8, 8)), r"C 1 \(grey\) or 3"),
        (lambda: Normalize()(torch.zeros(1, 3, 8, 8, dtype=torch.int64)), "must be uint8"),
    ],
)
def test_normalize_refuses_what_it_cannot_read(run, message):
    with pytest.raises(ValueError, match=message):
        run()
