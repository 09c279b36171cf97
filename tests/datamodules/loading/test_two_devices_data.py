import json

import pytest

from tests.datamodules.loading.two_device_run import record
from tests.helpers.processes import run


def joined(ranks, stage):
    """The global batches: the ranks' batches one after the other."""
    seen = [rank["seen"][stage] for rank in ranks]
    return [
        [i for batches in seen for i in (batches[k] if k < len(batches) else [])] for k in range(max(map(len, seen)))
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Eight steps, five to an epoch: on one device, on two, and on two after three on one."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("one", "two", "resumed"):
        (root / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "7")
        run(record, root / "one", 1, 8)
        run(record, root / "two", 2, 8, processes=2)
        run(record, root / "resumed", 2, 8, root / "one" / "three.ckpt", processes=2)
    return {
        name: [json.loads(path.read_text()) for path in sorted((root / name).glob("rank*.json"))]
        for name in ("one", "two", "resumed")
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "val", "predict", "bank"])
def test_the_batches_of_two_devices_together_are_those_of_one(runs, stage):
    one = joined(runs["one"], stage)
    assert one
    assert joined(runs["two"], stage) == one


def test_evaluations_miss_nothing_and_repeat_nothing(runs):
    for name in ("one", "two"):
        assert [i for batch in joined(runs[name], "val") for i in batch] == list(range(21))
        assert [i for batch in joined(runs[name], "predict") for i in batch] == list(range(18))


def test_the_bank_holds_the_labelled_images(runs):
    assert [i for batch in joined(runs["two"], "bank") for i in batch] == [i for i in range(45) if i % 3]


def test_each_device_gets_its_share_of_the_global_batch(runs):
    assert {len(batch) for rank in runs["two"] for batch in rank["seen"]["train"]} == {4}


def test_lightning_leaves_the_samplers_alone(runs):
    assert [len(ranks) for ranks in runs.values()] == [1, 2, 2]
    assert all(rank["samplers"] == ["GlobalBatchSampler"] * 2 for ranks in runs.values() for rank in ranks)


def test_a_run_that_was_killed_on_one_device_goes_on_with_two(runs):
    assert joined(runs["resumed"], "train") == joined(runs["one"], "train")[3:]
