from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary
from rich import get_console
from rich.box import SIMPLE_HEAD
from rich.table import Table


class Summary(ModelSummary):
    """Prints the parts of a recipe and their numbers of parameters when training starts.

    Lightning's own summary adds FLOPs, which it counts as 0 without an example input, and a size in megabytes for one
    precision.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints one row per part, and the sums."""
        if not trainer.is_global_zero:
            return
        summary: Any = self._summary(trainer, pl_module)
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("part")
        table.add_column("class")
        table.add_column("parameters", justify="right")
        for name, kind, number in zip(summary.layer_names, summary.layer_types, summary.param_nums, strict=True):
            table.add_row(name, kind, f"{number:,}")
        console = get_console()
        console.print(table)
        total, trainable = summary.total_parameters, summary.trainable_parameters
        console.print(f"{total:,} parameters, {trainable:,} of them trainable\n", highlight=False)
