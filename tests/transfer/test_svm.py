import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import recipes
from datamodules import Digits, Splits
from recipes.cli import main
from recipes.nn import ConvNet
from recipes.transfer.svm import SVM, fit_svm
from tests.helpers.processes import run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DIGITS = ["--config", "svm-digits", "--data.size", "8", "--model.encoder.widths", "[4,8]"]
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--pictures.points", "10"]


def blobs(n, classes=3, width=6, seed=0):
    """Features of overlapping classes, of very different scales, and one that is constant."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    label = torch.arange(n) % classes
    feature = centres[label] + torch.randn(n, width, generator=generator)
    feature = feature * 10.0 ** torch.arange(-2, width - 2) + 7
    feature[:, 3] = 5.0
    return feature, label


@pytest.mark.parametrize("classes", [2, 3])
def test_the_solution_is_where_the_gradient_of_the_objective_is_zero(classes):
    feature, label = blobs(90, classes)
    C = 0.1
    fit = fit_svm(feature, label, None, None, classes, grid=(C,))
    x = feature.double()
    std = x.std(0, correction=0)
    std[3] = 1
    w, b = fit.weight * std, fit.bias + fit.weight @ x.mean(0)  # for standardised features
    x = (x - x.mean(0)) / std
    for k in range(classes):
        gradient_w, gradient_b = w[k].clone(), b[k].clone()
        for image, own in zip(x, label):
            y = 1 if own == k else -1
            violation = max(0.0, 1 - y * (image @ w[k] + b[k]).item())
            gradient_w -= 2 * C * violation * y * image
            gradient_b -= 2 * C * violation * y
        assert gradient_w.abs().max() < 1e-2 < w[k].abs().max()
        assert gradient_b.abs() < 1e-2


def test_two_images_are_told_apart_as_in_closed_form():
    for C in (0.01, 1.0, 10.0):
        fit = fit_svm(torch.tensor([[1.0], [5.0]]), torch.tensor([0, 1]), None, None, 2, grid=(C,))
        w = 4 * C / (1 + 4 * C)  # minimises w²/2 + 2 C (1 - w)²; standardised images are -1 and 1
        assert fit.weight.flatten().tolist() == pytest.approx([-w / 2, w / 2], rel=1e-3)
        assert fit.bias.tolist() == pytest.approx([w * 3 / 2, -w * 3 / 2], rel=1e-3)


def test_a_linear_layer_gives_the_decision_values_of_scikit_learn_on_standardised_features():
    feature, label = blobs(200)
    test, _ = blobs(50, seed=5)
    fit = fit_svm(feature, label, None, None, 3, grid=(0.01,))
    machine = make_pipeline(StandardScaler(), LinearSVC(C=0.01, dual=False)).fit(feature.double().numpy(), label)
    expected = machine.decision_function(test.double().numpy())
    np.testing.assert_allclose((test.double() @ fit.weight.T + fit.bias).numpy(), expected, atol=1e-6)


def test_the_smallest_of_the_best_values_of_c_on_validation_images_is_chosen():
    feature, label = blobs(60, seed=1)
    val_feature, val_label = blobs(40, seed=2)
    grid = (10.0, 1e-3, 1e-5, 0.1)
    fit = fit_svm(feature, label, val_feature, val_label, 3, grid)
    expected = {}
    for c in grid:
        machine = make_pipeline(StandardScaler(), LinearSVC(C=c, dual=False)).fit(feature.double().numpy(), label)
        expected[c] = (machine.predict(val_feature.double().numpy()) == val_label.numpy()).mean()
    assert fit.accuracies == pytest.approx(expected)
    best = [c for c in grid if expected[c] == max(expected.values())]
    chosen = fit.C
    assert chosen == min(best)
    same = fit_svm(feature, label, feature[:3], label[:3], 3, grid=(0.1, 0.05, 0.2))
    assert len(set(same.accuracies.values())) == 1
    assert same.C == 0.05


def test_without_validation_images_c_is_chosen_by_cross_validation():
    feature, label = blobs(60, seed=1)
    grid = (1e-6, 1e-3, 0.1)
    fit = fit_svm(feature, label, None, None, 3, grid)
    x = StandardScaler().fit_transform(feature.double().numpy())
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    expected = {c: cross_val_score(LinearSVC(C=c, dual=False), x, label, cv=folds).mean() for c in grid}
    assert fit.accuracies == pytest.approx(expected)
    best = [c for c in grid if expected[c] == max(expected.values())]
    chosen = fit.C
    assert chosen == min(best)
    torch.testing.assert_close(fit.weight, fit_svm(feature, label, None, None, 3, (fit.C,)).weight)


def test_images_without_a_label_take_no_part():
    feature, label = blobs(60)
    hidden = label.clone()
    hidden[40:] = -1
    val = blobs(30, seed=3)
    half_labelled = val[1].clone()
    half_labelled[20:] = -1
    ours = fit_svm(feature, hidden, val[0], half_labelled, 3)
    theirs = fit_svm(feature[:40], label[:40], val[0][:20], val[1][:20], 3)
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.accuracies == theirs.accuracies
    no_val = fit_svm(feature, label, val[0], torch.full_like(val[1], -1), 3, (0.1, 1.0))
    assert no_val.accuracies == fit_svm(feature, label, None, None, 3, (0.1, 1.0)).accuracies


def test_a_class_without_training_images_is_never_predicted():
    feature, label = blobs(60)
    label = torch.tensor([0, 2, 4])[label]
    fit = fit_svm(feature, label, None, None, 5)
    assert fit.weight.shape == (5, 6)
    assert fit.bias.isneginf().tolist() == [False, True, False, True, False]
    scores = torch.randn(1000, 6, dtype=torch.float64) * 1e4 @ fit.weight.T + fit.bias
    assert set(scores.argmax(1).tolist()) == {0, 2, 4}


def test_with_one_image_of_each_class_there_is_no_choice():
    feature, label = blobs(3)
    fit = fit_svm(feature, label, None, None, 3, (0.1, 1.0, 10.0))
    assert fit.C == 1.0
    assert fit.accuracies == {}
    assert ((feature.double() @ fit.weight.T + fit.bias).argmax(1) == label).all()


def test_fewer_images_than_features_that_are_much_alike_and_a_large_c_are_solved_to_the_end():
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(60, 10, generator=generator) @ torch.randn(10, 80, generator=generator)
    feature = feature + 0.05 * torch.randn(60, 80, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn warns of what has not converged
        fit_svm(feature, torch.arange(60) % 3, None, None, 3, grid=(10.0,))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": torch.zeros(60, dtype=torch.int64)}, "are of 1 class: a support vector machine tells at least two"),
        ({"label": torch.full((60,), -1)}, "are of 0 classes"),
        ({"feature": torch.full((60, 6), float("nan"))}, "not finite"),
        ({"grid": ()}, "at least one value of C"),
        ({"grid": (1.0, 0.0)}, "all positive"),
    ],
)
def test_what_cannot_be_solved_is_refused(changed, message):
    feature, label = blobs(60)
    given = {"feature": feature, "label": label, "grid": (1.0,), **changed}
    with pytest.raises(ValueError, match=message):
        fit_svm(val_feature=None, val_label=None, num_classes=3, **given)


# The recipe


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
    fit(folder, devices=2)
    with pytest.raises(ValueError, match="are of 1 class"):  # on both, and neither waits for the other
        fit(folder, devices=2, data=OneClass(size=8, batch_size=250))


def test_the_head_is_the_solution_on_the_features_of_all_images_and_the_encoder_is_as_it_was(tmp_path):
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
    run(two_processes, tmp_path, processes=2)
    fit(tmp_path)
    one, *two = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for rank in two:
        torch.testing.assert_close(rank, one, rtol=1e-8, atol=1e-8)  # liblinear stops at a tolerance
    assert all(torch.equal(two[0][name], two[1][name]) for name in one)


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
