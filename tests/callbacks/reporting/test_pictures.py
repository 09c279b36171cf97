from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from matplotlib import pyplot

from datamodules import Digits
from recipes import SimCLR
from recipes.callbacks import Pictures
from recipes.callbacks.reporting import pictures
from recipes.evaluation.features import Features
from recipes.nn import ConvNet


def features(feature: torch.Tensor, label: list[int]) -> Features:
    return Features(feature, torch.tensor(label), torch.arange(len(label)) + 100)


def trainer(path: Path, callback: Pictures, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", callbacks=[callback], default_root_dir=path, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0, **options,
    )  # fmt: skip


def texts(figure: Any) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_neighbours_are_the_most_similar_images_framed_by_class() -> None:
    bank = features(torch.tensor([[0.0, 1.0], [9.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), [1, 1, 0, 0])
    test = features(torch.tensor([[1.0, 0.0], [0.5, 0.0]]), [0, 0])
    asked = []

    def images(index: torch.Tensor) -> torch.Tensor:
        asked.append(index.tolist())
        return torch.zeros(len(index), 3, 8, 8, dtype=torch.uint8)

    figure = pictures.neighbours(bank, test, images, images, ["cat", "dog"])
    assert asked == [[102, 101, 103, 100], [100]]  # at 0°, 6°, 45° and 90°, of the first test image of the one class
    frames = [axes.spines["left"] for axes in figure.axes]
    assert [frame.get_visible() for frame in frames] == [False, True, True, True, True]
    red, green = pictures._WRONG, pictures._RIGHT
    from matplotlib.colors import to_hex

    assert [to_hex(frame.get_edgecolor()) for frame in frames[1:]] == [green, red, green, red]
    assert {"cat", "cat  1.00", "dog  0.99", "cat  0.71", "dog  0.00"} <= set(texts(figure))
    assert any("50 % of the same class" in text for text in texts(figure))


def test_tsne_separates_what_is_separate_and_names_the_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.eye(3, 16).repeat_interleave(20, 0) * 10
    label = [i // 20 for i in range(60)]
    both = {"before": features(torch.randn(60, 16, generator=generator), label),
            "after": features(centre + torch.randn(60, 16, generator=generator), label)}  # fmt: skip
    figure = pictures.tsne(both, ["ant", "bee", "a very long name of a class"])
    assert {"before", "after", "ant", "bee", "a very long…"} <= set(texts(figure))
    spread = []
    for axes in figure.axes:
        groups = [torch.tensor(dots.get_offsets()).float() for dots in axes.collections]
        assert [len(group) for group in groups] == [20, 20, 20]
        within = max((group - group.mean(0)).norm(dim=1).max() for group in groups)
        between = torch.pdist(torch.stack([group.mean(0) for group in groups])).min()
        spread.append(between / within)
    assert spread[1] > 1.5 > spread[0]


def test_tsne_of_many_classes_has_no_legend() -> None:
    label = list(range(30))
    figure = pictures.tsne({"after": features(torch.randn(30, 4), label)}, [f"class {i}" for i in label])
    assert figure.legends == []


def test_the_curve_of_a_long_run_shows_mean_and_range_of_bins() -> None:
    steps = list(range(1, 401))
    figure = pictures.loss_curve(steps, [float(step % 2) for step in steps], [(200, 0.5), (400, 0.75)])
    loss, knn = figure.axes
    assert loss.lines[0].get_xdata()[:2].tolist() == [1.5, 3.5]
    assert set(loss.lines[0].get_ydata()) == {0.5}
    assert knn.lines[0].get_ydata().tolist() == [50, 75]
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("optimiser step", "loss")
    assert "training loss, mean and range of 2 steps" in texts(figure)


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


def test_the_loss_of_accumulated_batches_is_not_divided(tmp_path: Path) -> None:
    losses = []
    for accumulate in (1, 2):
        seed_everything(0, verbose=False)
        callback = Pictures()
        it = trainer(tmp_path, callback, max_epochs=1, accumulate_grad_batches=accumulate)
        it.fit(SimCLR(ConvNet((4, 8)), scheduler=None), Digits(size=8))
        losses.append(callback._losses)
    assert losses[1][0] == pytest.approx(losses[0][0])


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


def test_pictures_go_to_weights_and_biases_where_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(WandbLogger, "log_image", lambda self, key, images: sent.append((key, images)))
    it: Any = SimpleNamespace(loggers=[WandbLogger(save_dir=tmp_path, offline=True)])
    path = tmp_path / "pictures" / "loss.png"
    pictures.save(pictures.loss_curve([1], [0.5]), path, it)
    assert sent == [("pictures/loss", [str(path)])]
    assert path.exists()


def test_drawing_leaves_pyplot_alone() -> None:
    pictures.loss_curve([1, 2], [1.0, 0.5])
    pictures.image_grid([[torch.rand(3, 8, 8)]], "title", ["head"])
    assert pyplot.get_fignums() == []


def test_a_number_of_points_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="points is 0: it must be positive"):
        Pictures(points=0)
