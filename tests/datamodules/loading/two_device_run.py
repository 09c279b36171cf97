"""What each device sees, for test_two_devices_data.py."""

import json

import torch
from lightning.pytorch import Callback, LightningModule

from datamodules import ImageDataModule, ImagesInMemory, Splits
from tests.helpers.training import quiet_trainer


class Numbers(ImageDataModule):
    def load(self):
        def dataset(count):
            return ImagesInMemory(
                torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1), torch.arange(count) % 3 - 1
            )

        return Splits(("a", "b"), dataset(45), dataset(21), dataset(18))


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {"train": [], "val": [], "predict": [], "bank": []}
        self.samplers = []

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch.index.tolist())
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.seen["val"].append(batch.index.tolist())

    def predict_step(self, batch, batch_idx):
        self.seen["predict"].append(batch.index.tolist())

    def on_train_start(self):
        self.samplers.append(type(self.trainer.train_dataloader.sampler).__name__)
        self.samplers.append(type(self.trainer.val_dataloaders.sampler).__name__)
        self.seen["bank"] = [batch.index.tolist() for batch in self.trainer.datamodule.bank_dataloader()]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def record(out, devices, steps, checkpoint=None):
    """Trains, predicts, and writes what this rank saw to rank<n>.json; after 3 steps it leaves a checkpoint."""
    recorder, data = Recorder(), Numbers(batch_size=8)
    trainer = fit(out, recorder, data, devices, steps, checkpoint)
    trainer.predict(recorder, data)
    report = {"seen": recorder.seen, "samplers": recorder.samplers}
    (out / f"rank{trainer.global_rank}.json").write_text(json.dumps(report))


def fit(out, recorder, data, devices, steps, checkpoint=None):
    """Trains, and leaves the checkpoint three.ckpt after 3 steps."""
    trainer = quiet_trainer(
        devices=devices, max_epochs=-1, max_steps=steps, callbacks=[SaveAfterThree(out / "three.ckpt")]
    )
    trainer.fit(recorder, data, ckpt_path=checkpoint)
    return trainer


class SaveAfterThree(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)
