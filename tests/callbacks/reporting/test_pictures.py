from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from datamodules import Digits
from recipes import SimCLR
from recipes.callbacks import Pictures
from recipes.callbacks.reporting import pictures
from recipes.nn import ConvNet
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.draws


def trainer(path: Path, callback: Pictures, **options: Any) -> Trainer:
    return quiet_trainer(callbacks=[callback], default_root_dir=path, limit_val_batches=0, **options)


@pytest.mark.slow
def test_the_curve_of_a_resumed_run_is_that_of_the_whole_run(tmp_path: Path) -> None:
    curves = []
    for stops in ([4], [2, 4]):
        checkpoint = None
        for epochs in stops:
            seed_everything(0, verbose=False)
            callback = Pictures()
            it = trainer(tmp_path, callback, max_epochs=epochs)
            it.fit(SimCLR(ConvNet((4, 8)), scheduler=None), Digits(size=8), ckpt_path=checkpoint)
            checkpoint = tmp_path / "last.ckpt"
            it.save_checkpoint(checkpoint)
        curves.append((callback._steps, callback._losses))
    assert curves[0][0] == list(range(1, 17))  # 4 batches of 256 images, 4 epochs
    assert curves[1] == (curves[0][0], pytest.approx(curves[0][1], rel=1e-5))


@pytest.mark.slow
def test_the_loss_of_accumulated_batches_is_not_divided(tmp_path: Path) -> None:
    losses = []
    for accumulate in (1, 2):
        seed_everything(0, verbose=False)
        callback = Pictures()
        it = trainer(tmp_path, callback, max_epochs=1, accumulate_grad_batches=accumulate)
        it.fit(SimCLR(ConvNet((4, 8)), scheduler=None), Digits(size=8))
        losses.append(callback._losses)
    assert losses[1][0] == pytest.approx(losses[0][0])


@pytest.mark.slow
def test_views_are_those_of_the_recipe_beside_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(pictures, "save", lambda figure, path, trainer: drawn.append((path.name, figure)))
    seed_everything(0, verbose=False)
    recipe = SimCLR(ConvNet((4, 8)), scheduler=None)
    data = Digits(size=8)
    batches = []
    watcher = Pictures()
    keep = watcher.on_train_batch_start
    monkeypatch.setattr(watcher, "on_train_batch_start", lambda *given: (batches.append(given[2]), keep(*given)))
    trainer(tmp_path, watcher, max_epochs=1).fit(recipe, data)
    figure = dict(drawn)["views.png"]
    assert len(figure.axes) == 6 * 8
    first = batches[0]
    original, view = (torch.tensor(figure.axes[column].images[0].get_array()) for column in (0, 2))
    assert torch.equal(original, first.image[0, 0].float() / 255)
    expected = recipe.views(first.image, recipe.key(first, 1)._replace(epoch=1))  # drawn after the first epoch
    torch.testing.assert_close(view, expected[0, 0])


def test_a_number_of_points_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="points is 0: it must be positive"):
        Pictures(points=0)
