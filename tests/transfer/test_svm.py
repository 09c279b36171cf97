import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

import recipes
from datamodules import Digits, Splits
from recipes.cli import main
from recipes.evaluation import fit_svm, svm
from recipes.nn import ConvNet
from recipes.transfer.svm import SVM
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DIGITS = ["--config", "svm-digits", "--data.size", "8", "--model.encoder.widths", "[4,8]"]
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--pictures.points", "10"]


class OneClass(Digits):
    """Training images of the digit 3 alone."""

    def load(self):
        splits = super().load()
        splits.train.label[:] = 3
        return Splits(splits.class_names, splits.train, splits.val, splits.test)


def fit(folder, devices=1, data=None):
    seed_everything(0, verbose=False)
    recipe = SVM(ConvNet((4, 8)), 10, grid=(1e-3, 0.1))
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "default_root_dir": folder}
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", precision="64-true",
        max_epochs=1, limit_train_batches=1, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(recipe, data or Digits(size=8, batch_size=250))
    torch.save(recipe.state_dict(), folder / f"{devices}-{trainer.global_rank}.pt")
    return recipe, trainer


def two_processes(folder):
    """Gives the values of C that this process solved for."""
    solved, solve = [], svm._solve

    def noted(x, y, c, num_classes):
        solved.append(c)
        return solve(x, y, c, num_classes)

    svm._solve = noted
    fit(folder, devices=2)
    with pytest.raises(ValueError, match="are of 1 class"):  # on both, and neither waits for the other
        fit(folder, devices=2, data=OneClass(size=8, batch_size=250))
    return solved


def test_the_head_is_the_solution_for_all_images_and_the_encoder_is_unchanged(tmp_path):
    recipe, trainer = fit(tmp_path)
    seed_everything(0, verbose=False)
    encoder = SVM(ConvNet((4, 8)), 10).encoder.double()
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, recipe.encoder.state_dict()[name]), name
    data, features = trainer.datamodule, []
    mean, std = torch.tensor([data.mean, data.std], dtype=torch.float64).view(2, 1, 1, 1, 1)
    for part in (data.splits.train, data.splits.val):
        image = part.images(torch.arange(len(part)))
        with torch.no_grad():
            features += [encoder.eval()((image.double() / 255 - mean) / std), part.label]
    expected = fit_svm(*features, 10, (1e-3, 0.1))
    assert recipe.solution.accuracies == expected.accuracies
    torch.testing.assert_close(recipe.head.weight.detach(), expected.weight, rtol=1e-4, atol=1e-4)
    val_feature, val_label = features[2:]
    by_head = (val_feature @ expected.weight.T + expected.bias).argmax(1)
    accuracy = (by_head == val_label).double().mean().item()
    assert trainer.callback_metrics["val/accuracy"].item() == pytest.approx(accuracy)
    assert accuracy == pytest.approx(expected.accuracies[expected.C])


def test_two_processes_find_the_same_solution_and_the_same_error(tmp_path):
    assert run(two_processes, tmp_path, processes=2) == [[0.1], [1e-3]], "each solves a share of the grid"
    fit(tmp_path)
    one, *two = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for rank in two:
        torch.testing.assert_close(rank, one, rtol=1e-8, atol=1e-8)  # liblinear stops at a tolerance
    assert all(torch.equal(two[0][name], two[1][name]) for name in one)


@pytest.mark.slow
def test_the_command_leaves_a_checkpoint_that_tests_predicts_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["fit", *DIGITS, *QUIET, "--trainer.limit_test_batches", "0"])
    (run_directory,) = (tmp_path / "runs" / "svm-digits").iterdir()
    recipe = recipes.load(run_directory)
    assert isinstance(recipe, SVM)

    main(["predict", "--ckpt_path", str(run_directory), *QUIET])
    (predictions,) = tmp_path.glob("runs/*/*/predictions.npz")
    with np.load(predictions) as found:
        assert set(found) == {"index", "label", "feature", "score"}  # and no probability
        np.testing.assert_allclose(
            recipe.logits(torch.from_numpy(found["feature"])).detach(), found["score"], rtol=1e-4, atol=1e-4
        )
        right = (found["score"].argmax(1) == found["label"]).mean()
    assert right > 0.3
    main(["test", "--ckpt_path", str(run_directory), *QUIET, "--trainer.limit_test_batches", "1.0"])
    assert f"test/accuracy: {right:.4f}" in capsys.readouterr().out.splitlines()

    longer = ["--trainer.max_epochs", "2", "--trainer.limit_test_batches", "0"]
    main(["fit", "--ckpt_path", str(run_directory), *QUIET, *longer])
    last = max((tmp_path / "runs" / "svm-digits").glob("*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime_ns)
    assert last.parent.parent != run_directory
    assert torch.load(last, weights_only=True)["global_step"] == 2
    for name, value in recipes.load(last).state_dict().items():
        assert torch.equal(value, recipe.state_dict()[name]), name


def test_a_fast_run_solves_nothing_as_one_batch_may_be_of_one_class(tmp_path):
    recipe = SVM(ConvNet((4, 8)), 10)
    before = recipe.head.weight.detach().clone()
    Trainer(accelerator="cpu", fast_dev_run=True, default_root_dir=tmp_path).fit(recipe, OneClass(size=8))
    assert recipe.solution is None
    assert torch.equal(recipe.head.weight, before)


def test_a_datamodule_is_needed(tmp_path):
    data = Digits(size=8)
    data.setup()
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="pass a DataModule"):
        trainer.fit(SVM(ConvNet((4, 8)), 10), data.train_dataloader())


def test_the_run_ends_after_the_solution_however_many_epochs_it_may_have():
    trainer = quiet_trainer(max_epochs=1000)
    trainer.fit(SVM(ConvNet((4,), in_channels=1), 10), Digits(size=8))
    assert trainer.global_step == 1
    assert trainer.callback_metrics["val/accuracy"] > 0.3
