import io
import logging
import math

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LRSchedulerCallable
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from recipes.optim import RunSchedule, WarmupCosine


def make_optimizer(*lrs):
    return SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in lrs or (1.0,)])


def lrs_of(scheduler, steps):
    """The lr of each of the next steps."""
    found = []
    for _ in range(steps):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


class Countdown(RunSchedule):
    def factor(self, step, total_steps, steps_per_epoch):
        return 1 - step / total_steps + 1000 * steps_per_epoch


def test_values_are_those_of_the_closed_form():
    scheduler = WarmupCosine(make_optimizer(2.0), warmup_epochs=1.5)
    scheduler.start(total_steps=12, steps_per_epoch=2)  # 3 steps of warm-up, 9 of cosine
    cosine = [1 + math.cos(math.pi * k / 9) for k in range(9)]
    assert lrs_of(scheduler, 12) == pytest.approx([0.5, 1.0, 1.5, *cosine], rel=1e-12)


def test_it_agrees_with_the_schedules_of_torch():
    warmup, total, final = 5, 20, 0.1
    ours = WarmupCosine(make_optimizer(0.3), warmup_epochs=1, final=final)
    ours.start(total, warmup)
    optimizer = make_optimizer(0.3)
    parts = [
        LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup),
        CosineAnnealingLR(optimizer, T_max=total - warmup, eta_min=0.3 * final),
    ]
    theirs = SequentialLR(optimizer, parts, milestones=[warmup])
    assert lrs_of(ours, total) == pytest.approx(lrs_of(theirs, total), rel=1e-9)


def test_the_first_step_moves_and_the_last_is_one_before_final():
    scheduler = WarmupCosine(make_optimizer(), warmup_epochs=2, final=0.25)
    scheduler.start(100, 10)
    lrs = lrs_of(scheduler, 100)
    assert lrs[0] == pytest.approx(1 / 21)
    assert lrs.index(max(lrs)) == 20
    assert max(lrs) == 1
    assert 0.25 < lrs[-1] < lrs[-2] < 0.26
    assert scheduler.get_last_lr() == [0.25]
    assert lrs_of(scheduler, 3) == [0.25] * 3  # Lightning may step once more


def test_without_warmup_it_starts_at_the_maximum():
    scheduler = WarmupCosine(make_optimizer(), warmup_epochs=0)
    scheduler.start(4, 1)
    assert lrs_of(scheduler, 4) == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])


def test_a_run_of_warmup_alone_is_allowed():
    scheduler = WarmupCosine(make_optimizer(), warmup_epochs=1)
    scheduler.start(3, 3)
    assert lrs_of(scheduler, 3) == pytest.approx([0.25, 0.5, 0.75])


def test_every_group_keeps_its_own_lr():
    optimizer = make_optimizer(1.0, 10.0)
    scheduler = Countdown(optimizer)
    scheduler.start(10, 1)
    lrs_of(scheduler, 3)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1000.7, 10007])


def test_after_the_run_the_lr_stays():
    scheduler = Countdown(make_optimizer())
    scheduler.start(4, 1)
    assert lrs_of(scheduler, 8)[4:] == [1000] * 4


def test_a_group_added_later_follows_the_schedule():
    optimizer = make_optimizer(1.0)
    scheduler = WarmupCosine(optimizer, warmup_epochs=0)
    scheduler.start(4, 1)
    lrs_of(scheduler, 1)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 10.0})
    lrs_of(scheduler, 1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 5.0])


def test_lrs_are_python_floats():
    scheduler = WarmupCosine(make_optimizer(1), warmup_epochs=1)
    scheduler.start(10, 2)
    assert {type(lr) for lr in lrs_of(scheduler, 12)} == {float}


def test_start_sets_the_lr_at_once():
    optimizer = make_optimizer()
    scheduler = WarmupCosine(optimizer, warmup_epochs=1)
    assert optimizer.param_groups[0]["lr"] == 1
    scheduler.start(10, 3)
    assert optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0] == 0.25


def test_stepping_before_start_is_an_error():
    scheduler = WarmupCosine(make_optimizer())
    with pytest.raises(RuntimeError, match=r"start\(\)"):
        scheduler.step()


def test_state_is_the_step_and_nothing_else():
    scheduler = WarmupCosine(make_optimizer(), warmup_epochs=1)
    scheduler.start(10, 2)
    lrs_of(scheduler, 4)
    assert scheduler.state_dict() == {"step": 4}


@pytest.mark.parametrize("start_first", [True, False])
def test_a_resumed_run_follows_the_length_and_the_lr_of_now(start_first):
    def begin(lr, total):
        optimizer = make_optimizer(lr)
        scheduler = WarmupCosine(optimizer, warmup_epochs=1)
        scheduler.start(total, 2)
        return optimizer, scheduler

    optimizer, scheduler = begin(1.0, 10)
    lrs_of(scheduler, 4)
    buffer = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)

    _, whole = begin(3.0, 20)
    expected = lrs_of(whole, 20)[4:]

    optimizer = make_optimizer(3.0)
    scheduler = WarmupCosine(optimizer, warmup_epochs=1)
    if start_first:
        scheduler.start(20, 2)
    optimizer.load_state_dict(state[0])
    scheduler.load_state_dict(state[1])
    if not start_first:
        scheduler.start(20, 2)
    assert lrs_of(scheduler, 16) == pytest.approx(expected, rel=1e-12)
    assert optimizer.param_groups[0]["initial_lr"] == 3.0


def test_a_warmup_longer_than_the_run_is_cut_to_a_tenth_of_it(caplog):
    scheduler = WarmupCosine(make_optimizer(), warmup_epochs=10)
    with caplog.at_level(logging.INFO):
        scheduler.start(500, 100)
        scheduler.start(500, 100)  # as for the next of several tasks
    shorter = WarmupCosine(make_optimizer(), warmup_epochs=0.5)
    shorter.start(500, 100)
    assert lrs_of(scheduler, 500) == lrs_of(shorter, 500)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "the warm-up of 10 epochs (1000 steps) is longer than the run of 500 steps: it is cut to 50 steps, a tenth of "
        "the run"
    )


def test_a_warmup_as_long_as_the_run_is_left_as_it_is(caplog):
    scheduler = WarmupCosine(make_optimizer(), warmup_epochs=5)
    with caplog.at_level(logging.INFO):
        scheduler.start(500, 100)
    assert lrs_of(scheduler, 500) == pytest.approx([(t + 1) / 501 for t in range(500)])
    assert not caplog.records


@pytest.mark.parametrize("total", [0, -1, math.inf])
def test_a_run_without_end_or_step_is_refused(total):
    scheduler = WarmupCosine(make_optimizer(), warmup_epochs=0)
    with pytest.raises(ValueError, match="max_epochs"):
        scheduler.start(total, 10)


@pytest.mark.parametrize("options", [{"warmup_epochs": -1}, {"final": -0.1}, {"warmup_epochs": math.nan}])
def test_arguments_of_the_schedule_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        WarmupCosine(make_optimizer(), **options)


def test_the_command_line_makes_it():
    parser = ArgumentParser()
    parser.add_argument("--scheduler", type=LRSchedulerCallable)
    parsed = parser.parse_args(
        ["--scheduler=recipes.optim.WarmupCosine", "--scheduler.warmup_epochs=3", "--scheduler.final=0.5"]
    )
    scheduler = parser.instantiate_classes(parsed).scheduler(make_optimizer())
    assert isinstance(scheduler, WarmupCosine)
    assert (scheduler.warmup_epochs, scheduler.final) == (3, 0.5)
