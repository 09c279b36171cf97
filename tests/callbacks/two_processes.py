"""What test_callbacks_distributed.py runs in one process and in two."""

import json
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from datamodules import Batch, Digits
from recipes import SimCLR
from recipes.callbacks import CollapseMonitor, RepresentationProbe
from recipes.evaluation.features import Collector
from recipes.nn import ConvNet


def gather(out: Path) -> None:
    """Rank 0 has 5 images, rank 1 has 2, one of which rank 0 has too; then rank 0 has none."""
    rank = torch.distributed.get_rank()
    report = []
    for shards in ([[4, 0, 6], [2, 1]], [[3, 2]]), ([], [[1, 0], [5]]):
        collector = Collector(torch.device("cpu"))
        for part in shards[rank]:
            index = torch.tensor(part)
            collector.add(torch.stack([index, index * 10], 1).double(), Batch(index, index % 3, index))
        features = collector.gather()
        assert features.feature.dtype == torch.float32
        report.append([x.tolist() for x in features])
    (out / f"gather{rank}.json").write_text(json.dumps(report))


def evaluate(out: Path, devices: int) -> None:
    seed_everything(0, verbose=False)
    recipe = SimCLR(ConvNet((8, 16)), scheduler=None)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        logger=False,
        default_root_dir=out,
        callbacks=[RepresentationProbe(draws=2), CollapseMonitor()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    checkpoint = out.parent / "checkpoint.ckpt"
    data = Digits(batch_size=100)  # 1257 for the bank, 180 and 360 to classify: the last batches are not full
    trainer.validate(recipe, data, ckpt_path=checkpoint, verbose=False)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    trainer.test(recipe, data, ckpt_path=checkpoint, verbose=False)
    metrics |= {name: value.item() for name, value in trainer.callback_metrics.items()}
    (out / f"metrics{trainer.global_rank}.json").write_text(json.dumps(metrics))


def evaluate_and_gather(out: Path) -> None:
    evaluate(out, devices=2)
    gather(out)  # the processes are still joined
