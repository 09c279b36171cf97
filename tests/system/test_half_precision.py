"""Every recipe trains in bf16-true, with its loss and its moving averages in float32."""

from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback

from recipes.callbacks import Pictures
from recipes.cli import main
from recipes.nn import MomentumCopy
from tests.system.exactness import CASES, TEACHER, arguments, packaged

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = {
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 4,
    "trainer.limit_train_batches": 2,
    "trainer.limit_val_batches": 0,
    "trainer.limit_test_batches": 0,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "model.scheduler": "null",
    "data.batch_size": 96,
}


class Watch(Callback):
    """Follows the types of the losses, and every copy in float64: how far it is from that, and how far it moved."""

    losses: Counter[torch.dtype]
    copies: list[tuple[float, float]]

    def setup(self, trainer, pl_module, stage):
        for callback in trainer.callbacks:
            if isinstance(callback, Pictures):
                callback.on_fit_end = lambda *_: None

    def on_train_start(self, trainer, pl_module):
        Watch.losses, Watch.copies = Counter(), []
        self.network = {name: part for name, part in pl_module.named_modules() if isinstance(part, MomentumCopy)}
        self.exact = {name: doubles(part) for name, part in self.network.items()}
        self.start = {name: doubles(part) for name, part in self.network.items()}
        for name, part in self.network.items():
            part.update = self.followed(name, part, part.update)

    def followed(self, name, part, update):
        def both(momentum):
            update(momentum)
            theirs = [p for source in part._sources for p in source.parameters()]
            for exact, their in zip(self.exact[name], theirs, strict=True):
                exact.mul_(momentum).add_(their.detach().double(), alpha=1 - momentum)

        return both

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if outputs is not None:
            Watch.losses[outputs["loss"].dtype] += 1

    def on_train_end(self, trainer, pl_module):
        for name, part in self.network.items():
            now = doubles(part)
            apart, moved = (
                max(float((one - other).abs().max()) for one, other in zip(now, others, strict=True))
                for others in (self.exact[name], self.start[name])
            )
            Watch.copies.append((apart, moved))
            del part.update


def doubles(module):
    return [parameter.detach().double().clone() for parameter in module.parameters()]


def fit(config, folder, **changed):
    main(arguments(config, folder, SHORT, changed))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The run of a teacher for the digits."""
    folder = tmp_path_factory.mktemp("teacher")
    fit(TEACHER, folder)
    return folder / TEACHER


@pytest.mark.slow
@pytest.mark.parametrize("config", CASES)
def test_a_recipe_trains_in_bf16_true_with_its_loss_and_its_copies_in_float32(config, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = {"model.teacher": teacher} if "teacher" in packaged(config)["model"]["init_args"] else {}
    watch = {"trainer.callbacks": f"{__name__}.Watch", "trainer.precision": "bf16-true"}
    fit(config, tmp_path, **changed, **watch)
    assert set(Watch.losses) == {torch.float32}
    for apart, moved in Watch.copies:
        assert apart < 1e-6
        assert moved > 1e-4
    assert Watch.copies or not config.startswith(("byol", "mean-teacher", "moco"))
