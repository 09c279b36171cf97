from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules import Batch
from recipes.callbacks.reporting.files import file_names
from recipes.evaluation.rows import join
from recipes.evaluation.text_tables import comma_separated


class PredictionFile(Callback):
    r"""Writes the outputs of ``predict_step`` for each image to files in the run directory.

    ``numpy.load`` reads ``predictions.npz``, which has these arrays:

    * ``index`` [N]: the position of each image in its dataset, in ascending order;
    * ``label`` [N]: the class of the image, or -1;
    * ``feature`` [N, F]: the features of the image;
    * ``probability`` [N, classes]: the predicted probabilities, for a recipe with a classifier. If the classifier has
      no probabilities, such as an SVM or ICaRL, the array is ``score``; the class with the largest score is predicted;
    * ``task`` [N]: the number of the task that a prediction assumes, from 1, or 0 if the task is unknown; only for
      networks that were trained in the scenario ``task``.

    A classifier also writes ``predictions.csv``, with one line for each image: its ``file`` relative to the root of the
    data (or its ``index`` if images are not files), its predicted ``class``, the ``probability`` or ``score`` of this
    class and, if the prediction assumes a task, the ``task``.
    The table is UTF-8. Each byte of a name that is not UTF-8 is written as ``\xff``, with its own digits, and a control
    character as its escape, such as ``\n``. A name that a spreadsheet could take for a formula gets an apostrophe in
    front: one that begins with =, +, -, @ or an apostrophe, after any spaces, and is not a number.

    The images are those of the DataModule's ``predict_dataloader``: the test images, or all images if there is no test
    split. A folder without class folders has no test split. With class folders,
    ``--data.val_fraction 0 --data.test_fraction 0`` predicts all images.

    Args:
        filename: name of the NumPy file, ending in .npz. The table has the same name, ending in .csv.

    Raises:
        ValueError: if ``filename`` does not end in .npz.
    """

    def __init__(self, filename: str = "predictions.npz") -> None:
        if not filename.endswith(".npz"):
            raise ValueError(f"filename is {filename!r}: it must end in .npz, such as predictions.npz")
        self.filename = filename
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets what is left of a prediction that was interrupted."""
        self._parts.clear()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, Tensor],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps what was predicted for a batch."""
        for name, value in {"label": batch.label, **outputs}.items():
            self._parts[name].append(value.detach().float() if value.is_floating_point() else value)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins what all devices predicted and writes it, each image once."""
        arrays: dict[str, Any] = {name: join(parts).cpu().numpy() for name, parts in self._parts.items()}
        self._parts.clear()
        directory = Path(trainer.log_dir or trainer.default_root_dir)  # log_dir is a collective
        if not trainer.is_global_zero or not arrays:
            return
        arrays = {name: array[arrays["index"] >= 0] for name, array in arrays.items()}  # -1 is no image
        _, rows = np.unique(arrays["index"], return_index=True)
        arrays = {name: array[rows] for name, array in arrays.items()}
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / self.filename
        np.savez(path, **arrays)
        written = str(path)
        column = next((name for name in ("probability", "score") if name in arrays), None)
        if column:
            data: Any = getattr(trainer, "datamodule", None)
            names = getattr(pl_module, "class_names", ()) or getattr(data, "class_names", ())
            files = file_names(data, trainer.predict_dataloaders)
            _write_table(path.with_suffix(".csv"), arrays, column, names, files)
            written += f" and {path.with_suffix('.csv').name}"
        rank_zero_info(f"{len(rows)} images: {written}")


def _write_table(
    path: Path, arrays: dict[str, np.ndarray], column: str, names: Sequence[str], files: Sequence[str] | None
) -> None:
    rows = []
    for i, row in zip(arrays["index"].tolist(), arrays[column]):
        label = int(row.argmax())
        rows.append([i if files is None else files[i], names[label] if names else label, f"{row[label]:.6f}"])
    head = ["index" if files is None else "file", "class", column]
    if "task" in arrays:
        head.append("task")
        rows = [[*row, task or ""] for row, task in zip(rows, arrays["task"].tolist())]
    path.write_text(comma_separated(head, rows), encoding="utf-8", newline="")
