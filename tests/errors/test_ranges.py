import pytest

from recipes.errors import check_at_least


def test_numbers_in_range_and_null_pass():
    check_at_least(1, queue_size=1, projection_dim=None)
    check_at_least(0, weight=0.0)


@pytest.mark.parametrize("number", [0, -3, 0.5, float("nan")])
def test_a_number_below_is_named_by_its_argument(number):
    with pytest.raises(ValueError, match=f"^queue_size is {number}: it must be at least 1$"):
        check_at_least(1, projection_dim=2, queue_size=number)
