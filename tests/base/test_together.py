from types import SimpleNamespace

import pytest

from recipes.base.together import Together
from tests.base.long_work import fail_on_the_second, wait_as_others_do, wait_together
from tests.helpers.processes import run


@pytest.mark.slow
def test_work_that_outlasts_the_limit_of_other_exchanges_is_waited_for(tmp_path):
    (tmp_path / "together").mkdir()
    assert run(wait_together, tmp_path / "together", processes=2) == [(7.0, [0, 11, 2])] * 2
    _, error = run(wait_as_others_do, tmp_path, processes=2)
    assert "imed out" in error, "without it, the same work ends the run"


def test_a_job_that_fails_on_one_process_fails_on_all(tmp_path):
    assert run(fail_on_the_second, tmp_path, processes=2) == ["out of luck"] * 2


def test_one_process_does_all_jobs():
    together = Together(SimpleNamespace(world_size=1, global_rank=0))
    assert together.results([lambda: 1, lambda: 2]) == [1, 2]
    together.wait()
