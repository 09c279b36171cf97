"""A training loader that resumes at the batch where the previous run stopped."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from datamodules.batch import Batch
from datamodules.loading.sampler import GlobalBatchSampler


class ResumableLoader(DataLoader[Batch]):
    """A DataLoader whose position is in Lightning's checkpoints; a resumed run does not load earlier batches again.

    The position is counted in global batches, so that a run can resume on another number of devices.

    Attributes:
        trainer: Trainer that counts the batches trained on. If None, counts the batches returned.
        waiting: whether the next batch is being read.
    """

    sampler: GlobalBatchSampler
    trainer: Trainer | None = None
    waiting = False
    _epoch = 0
    _handed_out = 0
    _resume: dict[str, int] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch."""
        if self._resume is not None:
            return self._resume
        batch = self._handed_out
        if self.trainer is not None:  # a run can be killed with a batch in hand, which Lightning will ask for again
            done = self.trainer.fit_loop.epoch_loop.batch_progress.state_dict()["current"]["processed"]
            batch = (done - 1) % len(self) + 1 if done else 0  # a CombinedLoader begins a shorter loader anew
        return {"epoch": self._epoch, "batch": batch, "batch_size": self.sampler.global_batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sets the position for the next iteration, if that is of the same epoch."""
        self._resume = state or None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # A generator, so that nothing is loaded before the first batch is asked for:
        # Lightning makes the iterator before it knows the epoch.
        if self.trainer is not None:  # what Lightning tells samplers runs ahead after resuming at an epoch's end
            self.sampler.set_epoch(self.trainer.current_epoch)
        self._epoch = self.sampler.epoch
        start = self.sampler.skip = self._start(self.sampler)
        self._handed_out = start
        self.waiting = True
        for batch in super().__iter__():
            self.waiting = False
            self._handed_out += 1
            yield batch
            self.waiting = True
        self.waiting = False

    def _start(self, sampler: GlobalBatchSampler) -> int:
        state, self._resume = self._resume, None
        if state is None or state["epoch"] != sampler.epoch:
            return 0
        if state["batch"] and state["batch_size"] != sampler.global_batch_size:
            raise ValueError(
                f"the checkpoint was saved within an epoch of batches of {state['batch_size']} images, and batch_size "
                f"is {sampler.global_batch_size}: resume with batch_size={state['batch_size']}"
            )
        return state["batch"]
