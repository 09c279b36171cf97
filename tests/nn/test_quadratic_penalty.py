import pytest
import torch
from torch import nn

from recipes.base.recipe import Recipe
from recipes.nn import QuadraticPenalty, TensorList

SHAPES = [(3, 4), (5,), (2, 3, 2, 2)]


def tensors(seed, positive=False):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [x.square() * (x.abs() > 0.5) for x in drawn] if positive else drawn  # some are 0


def penalty_and_gradient(function, parameters):
    parameters = [p.clone().requires_grad_() for p in parameters]
    value = function(parameters)
    return value, torch.autograd.grad(value, parameters)


def assert_same(one, other, parameters):
    (value, gradients), (expected, theirs) = (penalty_and_gradient(f, parameters) for f in (one, other))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, theirs, rtol=1e-12, atol=1e-12)


def term(weight, anchor):
    return lambda theta: sum((w * (p - a) ** 2).sum() for w, p, a in zip(weight, theta, anchor))


def test_separate_terms_are_equal_to_the_one_quadratic_that_is_kept():
    penalty = QuadraticPenalty(tensors(0))
    terms = [term(tensors(task, positive=True), tensors(10 + task)) for task in (1, 2, 3)]
    for task in (1, 2, 3):
        penalty.add(tensors(task, positive=True), tensors(10 + task))
        for seed in (20, 21):
            assert_same(penalty, lambda theta, n=task: sum(each(theta) for each in terms[:n]), tensors(seed))
    assert sum(p.numel() for p in penalty.buffers()) == 1 + 2 * sum(p.numel() for p in tensors(0))


def test_it_is_zero_at_the_anchor_of_one_term_and_positive_away_from_it():
    anchor = [x.float() for x in tensors(1)]
    penalty = QuadraticPenalty([x.float() for x in tensors(0)])
    assert penalty([x.float() for x in tensors(5)]) == 0  # no term yet
    penalty.add([x.float() for x in tensors(2, positive=True)], anchor)
    assert penalty(anchor) == 0
    assert penalty([a + 0.01 for a in anchor]) > 1e-5


def test_moving_the_anchor_decays_what_there_was():
    penalty = QuadraticPenalty(tensors(0))
    penalty.add(tensors(1, positive=True), tensors(11))
    penalty.add(tensors(2, positive=True), tensors(12))
    penalty.move(tensors(3, positive=True), tensors(13), decay=0.7)
    weight = [0.7 * (f1 + f2) + f3 for f1, f2, f3 in zip(*(tensors(task, positive=True) for task in (1, 2, 3)))]
    assert_same(penalty, term(weight, tensors(13)), tensors(20))


def test_the_gradient_is_that_of_autograd():
    penalty = QuadraticPenalty(tensors(0))
    penalty.add(tensors(1, positive=True), tensors(11))
    penalty.add(tensors(2, positive=True), tensors(12))
    _, gradients = penalty_and_gradient(penalty, tensors(20))
    torch.testing.assert_close(penalty.gradient(tensors(20)), list(gradients))
    _, tripled = penalty_and_gradient(lambda theta: 3 * penalty(theta), tensors(20))
    torch.testing.assert_close(tripled, tuple(3 * g for g in gradients))


def test_the_sum_is_in_float32_for_parameters_in_half_precision():
    ones = [torch.ones(4097, dtype=torch.bfloat16)]
    penalty = QuadraticPenalty([torch.zeros_like(ones[0])])
    penalty.move(ones, [torch.zeros_like(ones[0])])
    value, (gradient,) = penalty_and_gradient(penalty, [1.5 * ones[0]])
    assert value.dtype == torch.float32
    assert value == 2.25 * 4097  # more digits than bfloat16 has
    assert gradient.dtype == torch.bfloat16
    assert (gradient == 3).all()


def test_checkpoints_keep_it():
    penalty, other = QuadraticPenalty(tensors(0)), QuadraticPenalty(tensors(1))
    penalty.add(tensors(2, positive=True), tensors(3))
    penalty.add(tensors(4, positive=True), tensors(5))
    other.load_state_dict(penalty.state_dict())
    assert other(tensors(6)) == penalty(tensors(6)) > 0


def test_what_it_begins_with_is_a_copy():
    parameters = tensors(0)
    penalty = QuadraticPenalty(parameters)
    parameters[0].zero_()
    assert torch.equal(next(iter(penalty.anchor)), tensors(0)[0])


class Held(Recipe):
    def __init__(self):
        nn.Module.__init__(self)
        self.penalty = QuadraticPenalty([torch.zeros(2)])
        self.list = TensorList([torch.zeros(3), torch.ones(2)])
        self.other = nn.BatchNorm1d(3)


def test_ddp_leaves_it_alone():
    ignored = Held()._ddp_params_and_buffers_to_ignore
    assert set(ignored) == {"penalty.constant", "penalty.weight.0", "penalty.anchor.0", "list.0", "list.1"}


@pytest.mark.parametrize("count", [1, 12])
def test_a_tensor_list_gives_its_tensors_in_their_order(count):
    numbers = TensorList(torch.full((2,), float(n)) for n in range(count))
    assert [x[0].item() for x in numbers] == list(range(count))
    numbers.load_state_dict({key: x + 1 for key, x in numbers.state_dict().items()})
    assert [x[0].item() for x in numbers.double()] == list(range(1, count + 1))
