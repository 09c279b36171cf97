import os
import signal

import pytest
import torch

from tests.helpers.processes import run


def add(number):
    total = torch.tensor(float(number + torch.distributed.get_rank()))
    torch.distributed.all_reduce(total)
    return total.item()


def fail_on_the_second():
    if torch.distributed.get_rank() == 1:
        raise RuntimeError("out of luck")
    torch.distributed.barrier()


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_are_joined():
    assert run(add, 3, processes=2) == [7, 7]


def test_a_failure_of_one_is_shown_and_ends_the_other():
    with pytest.raises(AssertionError, match="process [01]:(.|\n)*(out of luck|closed)"):
        run(fail_on_the_second, processes=2)


@pytest.mark.slow
def test_one_that_is_killed_is_told_from_one_that_failed():
    assert run(kill_itself) == [signal.SIGKILL]
