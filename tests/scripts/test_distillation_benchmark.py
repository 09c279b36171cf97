import importlib
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # where scripts/benchmark finds them

benchmark = importlib.import_module("benchmarks.distillation")


def loop(steps, each):
    def run(step_done):
        for step in range(steps):
            each(step)
            step_done()

    return run


def test_the_loops_make_a_step_each_in_turn():
    made = []
    loops = {name: loop(3, lambda step, name=name: made.append((step, name))) for name in "abc"}
    benchmark.step_by_step(loops, warmup=0)
    assert made == [(step, name) for step in range(3) for name in "abc"]


def test_the_seconds_of_a_step_are_its_own_and_those_of_the_warmup_are_left_out():
    loops = {
        "slow": loop(4, lambda step: time.sleep(0.3)),
        "quick": loop(4, lambda step: time.sleep(0.5 * (step == 0))),
    }
    seconds = benchmark.step_by_step(loops, warmup=1)
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert min(seconds["slow"]) >= 0.3
    assert max(seconds["quick"]) < 0.25  # neither what the other slept, nor its own first step


@pytest.mark.parametrize("at", ["begin", "end"])
def test_an_error_of_one_loop_ends_all_and_comes_out(at):
    def failing(step_done):
        if at == "end":
            loop(5, lambda step: None)(step_done)
        raise LookupError("of the second loop")

    steps = []
    with pytest.raises(LookupError, match="of the second loop"):
        benchmark.step_by_step({"a": loop(5, steps.append), "b": failing, "c": loop(5, steps.append)}, warmup=0)
    assert len(steps) == (10 if at == "end" else 1)


def test_a_row_names_both_sides_of_every_comparison():
    compared = [{"what": a, "with": b, "median_ratio": 1.0} for a, b in benchmark.COMPARED]
    rows = benchmark.rows({"task": "ResNet-56 to ResNet-20", "compared": compared})
    assert len({(what, other) for what, other, _ in rows}) == len(benchmark.COMPARED)
    assert all("ResNet-56 to ResNet-20" in what and value == "1.00 times its time" for what, _, value in rows)
