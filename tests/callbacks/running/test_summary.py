"""The summary at the start of a run says what can be counted, and nothing else."""

import pytest
from lightning.pytorch import Trainer

from datamodules import Digits
from recipes import SimCLR
from recipes.callbacks import Summary
from recipes.cli import main
from recipes.nn import ConvNet

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def printed(capsys, tmp_path):
    recipe = SimCLR(ConvNet((4, 8)), 16, scheduler=None)
    recipe.encoder.requires_grad_(False)
    Trainer(
        default_root_dir=tmp_path,
        fast_dev_run=True,
        callbacks=[Summary()],
        enable_model_summary=False,
        enable_progress_bar=False,
        accelerator="cpu",
    ).fit(recipe, Digits(batch_size=64))
    return recipe, capsys.readouterr().out


def test_the_numbers_are_those_of_the_parameters(capsys, tmp_path):
    recipe, out = printed(capsys, tmp_path)
    total = sum(p.numel() for p in recipe.parameters())
    trainable = sum(p.numel() for p in recipe.parameters() if p.requires_grad)
    assert 0 < trainable < total
    assert f"{total:,} parameters, {trainable:,} of them trainable" in out
    encoder = sum(p.numel() for p in recipe.encoder.parameters())
    (row,) = [line.split() for line in out.splitlines() if line.split()[:1] == ["encoder"]]
    assert row == ["encoder", "ConvNet", f"{encoder:,}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "summaries"),
    [
        ([], 1),
        (["--trainer.enable_model_summary", "false"], 0),
        (["--trainer.callbacks", "ModelSummary"], 0),
    ],
)
def test_a_run_prints_one_summary_without_flops(options, summaries, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--trainer.fast_dev_run", "1", "--trainer.limit_test_batches", "0", "--trainer.accelerator", "cpu"]
    main(["fit", "--config", "supervised-digits", "--model.encoder.widths", "[4]", *args, *options])
    out = capsys.readouterr().out
    assert out.count("parameters, ") == summaries
    assert "FLOPs" not in out
