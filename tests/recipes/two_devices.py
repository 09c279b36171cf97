"""Trains SimCLR without batch norm in float64; as a script, on two processes."""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from datamodules import Digits
from recipes import SimCLR
from recipes.nn import MLP


def train(out: Path, devices: int) -> None:
    seed_everything(0, verbose=False)
    sgd = lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9)  # noqa: E731
    recipe = SimCLR(MLP(16, hidden=(32,), batch_norm=False), optimizer=sgd, scheduler=None, lr_batch_size=None)
    recipe.projector = nn.Linear(32, 8)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="64-true",
        max_epochs=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )
    trainer.fit(recipe, Digits(batch_size=256))
    if trainer.is_global_zero:
        torch.save(recipe.state_dict(), out / f"{devices}.pt")


if __name__ == "__main__":
    train(Path(sys.argv[1]), devices=2)
