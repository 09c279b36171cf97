import pytest
import torch

from losses.precision import at_least_float32
from losses.temperature import check_temperature


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_without_a_change_of_value(dtype):
    x = torch.linspace(-2, 2, 9).to(dtype).requires_grad_()
    wide = at_least_float32(x)
    assert wide.dtype == torch.float32
    assert wide.tolist() == x.tolist()
    wide.sum().backward()
    assert x.grad.tolist() == [1] * 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool])
def test_other_tensors_are_returned_as_they_are(dtype):
    x = torch.ones(3, dtype=dtype)
    assert at_least_float32(x) is x


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_that_is_not_positive_is_refused_with_the_usual_range(temperature):
    with pytest.raises(ValueError, match=f"temperature is {temperature}: .* papers use 0.07 to 1$"):
        check_temperature(temperature)
    with pytest.raises(ValueError, match="papers use 1 to 20$"):
        check_temperature(temperature, usual="1 to 20")
