from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import WandbLogger

from recipes.callbacks.reporting.files import save
from recipes.plots.training import loss_curve


def test_pictures_go_to_weights_and_biases_where_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(WandbLogger, "log_image", lambda self, key, images: sent.append((key, images)))
    it: Any = SimpleNamespace(loggers=[WandbLogger(save_dir=tmp_path, offline=True)])
    path = tmp_path / "pictures" / "loss.png"
    save(loss_curve([1], [0.5]), path, it)
    assert sent == [("pictures/loss", [str(path)])]
    assert path.exists()
