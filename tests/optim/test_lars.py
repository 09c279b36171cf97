import math

import pytest
import torch
from torch import nn

from recipes.optim import LARS


def slow_lars(weights, gradients, lrs, momentum, weight_decay, trust, nesterov, excluded=False):
    """The steps of You et al., Algorithm 1, one number at a time, with the ratio of SimCLR's code."""
    weights, velocities = list(weights), [0.0] * len(weights)
    for gradient, lr in zip(gradients, lrs):
        decayed = [g + weight_decay * w for g, w in zip(gradient, weights)]
        length = math.sqrt(sum(w * w for w in weights))
        slope = math.sqrt(sum(g * g for g in decayed))
        ratio = trust * length / slope if length > 0 and slope > 0 and not excluded else 1.0
        for i, g in enumerate(decayed):
            velocities[i] = momentum * velocities[i] + lr * ratio * g
            weights[i] -= momentum * velocities[i] + lr * ratio * g if nesterov else velocities[i]
    return weights


def parameter(values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def set_gradient(p, values):
    p.grad = torch.tensor(values, dtype=p.dtype).reshape(p.shape)


def test_one_step_by_hand():
    w = parameter([3.0, 4.0])  # length 5
    optimizer = LARS([w], lr=2.0, momentum=0.5, weight_decay=0.5, trust_coefficient=0.1, eps=0)
    set_gradient(w, [4.5, 6.0])  # with decay [6, 8], length 10, so the ratio is 0.1 * 5 / 10 = 0.05
    optimizer.step()
    assert w.tolist() == pytest.approx([3 - 2 * 0.05 * 6, 4 - 2 * 0.05 * 8], rel=1e-15)
    set_gradient(w, [-0.5 * w[0].item(), -0.5 * w[1].item() + 1])  # with decay [0, 1]: the ratio is 0.1 * 4 = 0.4
    optimizer.step()
    assert w.tolist() == pytest.approx([2.4 - 0.5 * 0.6, 3.2 - 0.5 * 0.8 - 2 * 0.4 * 1], rel=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("excluded", [False, True])
def test_steps_under_a_changing_lr_follow_the_paper(nesterov, weight_decay, excluded):
    generator = torch.Generator().manual_seed(0)
    shapes, lrs = [(3, 2), (4,), (1,)], [0.5, 2.0, 1.0, 0.1, 3.0]
    start = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    gradients = [[torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in lrs]
    weights = [nn.Parameter(w.clone()) for w in start]
    optimizer = LARS(
        [{"params": weights, "lars_exclude": excluded}],
        lr=9.0,
        momentum=0.9,
        weight_decay=weight_decay,
        trust_coefficient=0.02,
        eps=0,
        nesterov=nesterov,
    )
    for lr, step in zip(lrs, gradients):
        optimizer.param_groups[0]["lr"] = lr
        for w, g in zip(weights, step):
            w.grad = g.clone()
        optimizer.step()
    for i, w in enumerate(weights):
        expected = slow_lars(
            start[i].flatten().tolist(),
            [step[i].flatten().tolist() for step in gradients],
            lrs,
            0.9,
            weight_decay,
            0.02,
            nesterov,
            excluded,
        )
        assert w.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_an_excluded_group_moves_as_under_sgd():
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64)) for _ in range(2))
    lars = LARS([{"params": [ours], "lars_exclude": True}], lr=0.3, weight_decay=0.1)
    sgd = torch.optim.SGD([theirs], lr=0.3, momentum=0.9, weight_decay=0.1)
    for _ in range(4):
        ours.grad = torch.randn(5, generator=generator, dtype=torch.float64)
        theirs.grad = ours.grad.clone()
        lars.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_without_weight_decay_the_rate_still_adapts():
    w = parameter([3.0, 4.0])
    optimizer = LARS([w], lr=1.0, momentum=0.0, weight_decay=0.0, trust_coefficient=0.01, eps=0)
    set_gradient(w, [0.0, 1000.0])
    optimizer.step()
    assert w.tolist() == pytest.approx([3.0, 4.0 - 0.01 * 5])


@pytest.mark.parametrize(("weight", "gradient"), [([0.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0])])
def test_a_zero_length_means_ratio_one(weight, gradient):
    w = parameter(weight)
    optimizer = LARS([w], lr=0.5, momentum=0.0, eps=0)
    set_gradient(w, gradient)
    optimizer.step()
    assert w.tolist() == pytest.approx([a - 0.5 * b for a, b in zip(weight, gradient)])


def test_parameters_without_gradient_stay_and_have_no_state():
    w, idle = parameter([1.0]), parameter([2.0])
    optimizer = LARS([w, idle], lr=1.0)
    set_gradient(w, [1.0])
    optimizer.step()
    assert idle.item() == 2.0
    assert idle not in optimizer.state


def test_the_gradient_is_left_as_it_is():
    w = parameter([1.0, 2.0])
    optimizer = LARS([w], lr=1.0, weight_decay=0.1, nesterov=True)
    set_gradient(w, [3.0, 4.0])
    optimizer.step()
    assert w.grad.tolist() == [3.0, 4.0]


def test_dtypes_can_be_mixed():
    a, b = parameter([3.0, 4.0]), nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = LARS([a, b], lr=1.0, trust_coefficient=0.1)
    for p in (a, b):
        set_gradient(p, [1.0, 0.0])
    optimizer.step()
    assert b.dtype == torch.float32
    torch.testing.assert_close(b.double(), a.detach())


def test_the_closure_makes_gradients_and_its_loss_is_returned():
    w = parameter([3.0, 4.0])
    optimizer = LARS([w], lr=1.0)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 25
    assert w.square().sum().item() < 25


def test_a_resumed_run_takes_the_same_steps(tmp_path):
    def run(weights, optimizer, steps):
        for step in steps:
            for i, w in enumerate(weights):
                w.grad = torch.full_like(w, math.sin(step + i)) + w.detach() ** 2
            optimizer.step()

    def make():
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(2, 3, dtype=torch.float64)) for _ in range(2)]
        groups = [{"params": weights[:1]}, {"params": weights[1:], "lars_exclude": True, "weight_decay": 0.0}]
        return weights, LARS(groups, lr=0.1, weight_decay=0.01)

    whole, optimizer = make()
    run(whole, optimizer, range(6))

    first, optimizer = make()
    run(first, optimizer, range(3))
    torch.save({"optimizer": optimizer.state_dict(), "weights": [w.data for w in first]}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second, optimizer = make()
    optimizer.load_state_dict(state["optimizer"])
    for w, saved in zip(second, state["weights"]):
        w.data.copy_(saved)
    run(second, optimizer, range(3, 6))
    for a, b in zip(whole, second):
        assert torch.equal(a, b)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_step_never_asks_for_a_value(nesterov):
    w = nn.Parameter(torch.empty(3, 2, device="meta"))  # a tensor without values: reading one is an error
    optimizer = LARS([w], lr=1.0, weight_decay=0.1, nesterov=nesterov)
    w.grad = torch.empty_like(w)
    optimizer.step()
    with pytest.raises(RuntimeError):
        w.sum().item()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -0.1),
        ("lr", float("nan")),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1.0),
        ("trust_coefficient", 0.0),
        ("eps", -1e-8),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        LARS([parameter([1.0])], **{"lr": 0.1, name: value})


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match="nesterov"):
        LARS([parameter([1.0])], lr=0.1, momentum=0.0, nesterov=True)
