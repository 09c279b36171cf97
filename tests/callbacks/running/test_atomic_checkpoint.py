"""A checkpoint's name always stands for a whole file."""

import resource

import pytest
import torch

from recipes.callbacks import AtomicCheckpointIO
from tests.helpers.processes import run
from tests.system.exactness import CASES, SAVE_EVERY, difference

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

IO = AtomicCheckpointIO()


def save_without_room(path):
    limit = path.stat().st_size  # half of what is to be written
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(OSError, match="File too large"):
        IO.save_checkpoint({"weight": torch.ones(20_000)}, path)


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_saves_goes_on_from_the_checkpoint_before(runs):
    killed = runs(CASES[0], killed={"save": 2})
    assert killed.checkpoint["global_step"] == SAVE_EVERY
    assert [path.name for path in killed.path.parent.glob("*.ckpt")] == ["last.ckpt"]
    assert killed.path.with_name("last.ckpt.part").exists()  # it was killed within the file
    assert difference(runs(CASES[0], after=killed.path), runs(CASES[0])) == 0


def test_a_full_disk_leaves_the_checkpoint_before_and_no_part(tmp_path):
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint({"weight": torch.zeros(10_000)}, path)
    run(save_without_room, path)
    assert torch.equal(IO.load_checkpoint(path)["weight"], torch.zeros(10_000))
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_of_a_file_is_overwritten(tmp_path):
    (tmp_path / "last.ckpt.part").write_bytes(b"half a file")
    IO.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_paths_that_are_not_local_are_written_by_lightning():
    IO.save_checkpoint({"step": 1}, "memory://bucket/last.ckpt")
    assert IO.load_checkpoint("memory://bucket/last.ckpt") == {"step": 1}


def test_a_local_path_may_be_a_url(tmp_path):
    IO.save_checkpoint({"step": 1}, f"file://{tmp_path}/new/last.ckpt")
    assert IO.load_checkpoint(tmp_path / "new" / "last.ckpt") == {"step": 1}
