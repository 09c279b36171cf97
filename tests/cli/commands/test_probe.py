"""``recipes probe`` measures what slow code measures, of every stage, and writes it down."""

import json

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from datamodules import Digits, Splits
from recipes.cli.commands import probe
from recipes.cli.commands.probe import main
from recipes.evaluation import fit_svm
from recipes.nn import ConvNet

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DIGITS = ["--data", "Digits", "--data.size", "8", "--accelerator", "cpu"]


def encoder_of(folder):
    torch.manual_seed(3)
    encoder = ConvNet((32, 64, 128))
    torch.save(encoder.state_dict(), folder / "weights.pt")
    return encoder, ["--encoder", "ConvNet", "--weights", str(folder / "weights.pt")]


def report(folder):
    (path,) = folder.glob("runs/probe-digits/*/probe.json")
    return json.loads(path.read_text())


def features_by_hand(encoder):
    """Of each stage and split, from the layers themselves, as NumPy arrays with the labels."""
    data = Digits(size=8)
    data.setup()
    found = {}
    for split in ("train", "val", "test"):
        dataset = getattr(data.splits, split)
        x = dataset.images(torch.arange(len(dataset))).float() / 255
        x = (x - data.mean[0]) / data.std[0]
        stage = 0
        with torch.no_grad():
            for layer in encoder.eval().network:
                if isinstance(layer, torch.nn.Conv2d) and stage:
                    found[stage - 1, split] = x.flatten(2).mean(2).double().numpy(), dataset.label.numpy()
                stage += isinstance(layer, torch.nn.Conv2d)
                x = layer(x)
        found[stage - 1, split] = x.double().numpy(), dataset.label.numpy()
    return found


@pytest.mark.slow
def test_every_head_on_every_stage_measures_what_scikit_learn_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder, named = encoder_of(tmp_path)
    main([*DIGITS, *named, "--random", "false", "--k", "7"])
    found = report(tmp_path)
    (rows,) = found["accuracy"].values()
    assert list(found["accuracy"]) == ["trained weights"]
    assert len(rows) == 3
    by_hand = features_by_hand(encoder)
    for stage, row in enumerate(rows.values()):
        assert set(row) == {"knn", "logistic", "svm"}
        x, y = by_hand[stage, "train"]
        scaler = StandardScaler().fit(x)
        logistic = LogisticRegression(C=1.0, max_iter=2000).fit(scaler.transform(x), y)
        tensors = (torch.from_numpy(part) for split in ("train", "val") for part in by_hand[stage, split])
        assert row["svm"]["C"] == fit_svm(*tensors, num_classes=10).C  # chosen on the validation images
        machine = LinearSVC(C=row["svm"]["C"], dual=False).fit(scaler.transform(x), y)
        for split in ("val", "test"):
            query, label = by_hand[stage, split]
            ours = {head: numbers[split] for head, numbers in row.items()}
            few = 3.5 / len(label)  # images on a border may fall to either side
            assert ours["logistic"] == pytest.approx(logistic.score(scaler.transform(query), label), abs=few)
            assert ours["svm"] == pytest.approx(machine.score(scaler.transform(query), label), abs=few)
            right = sum(vote(image, x, y, k=7) == own for image, own in zip(query, label))
            assert ours["knn"] == pytest.approx(right / len(label), abs=few)
    assert rows["8"]["svm"]["test"] > 0.8


def vote(image, bank, labels, k):
    """The class that a weighted vote of the k most similar images gives."""
    image, bank = torch.from_numpy(image), torch.from_numpy(bank)
    similarity = torch.cosine_similarity(image[None], bank)
    votes = [0.0] * 10
    for neighbour in similarity.argsort(descending=True)[:k].tolist():
        votes[labels[neighbour]] += torch.exp(similarity[neighbour] / 0.07).item()
    return votes.index(max(votes))


@pytest.mark.slow
def test_the_table_has_a_block_for_random_weights_and_fits_80_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, named = encoder_of(tmp_path)
    monkeypatch.setattr(probe, "_EPOCHS", 20)  # enough for digits
    main([*DIGITS, *named, "--heads", "[logistic,sgd,svm,knn]"])
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if "All numbers" not in line]
    assert max(len(line) for line in table) <= 80
    text = "\n".join(table)
    for word in ("trained weights", "random weights", "0: 0", "2: 8", "logistic", "SGD", "SVM", "kNN"):
        assert word in text
    found = report(tmp_path)
    trained, random = (found["accuracy"][f"{name} weights"] for name in ("trained", "random"))
    assert list(trained) == list(random) == ["0", "4", "8"]
    assert trained != random
    for row in (*trained.values(), *random.values()):
        assert list(row) == ["logistic", "sgd", "svm", "knn"]
        assert abs(row["sgd"]["test"] - row["logistic"]["test"]) < 0.1  # the same linear layer, solved less well
    assert found["protocol"]["images"] == {"train": 1257, "val": 180, "test": 360}
    assert found["protocol"]["sgd"]["epochs"] == 20
    assert found["encoder"]["init_args"]["weights"] == named[-1]
    assert f"{100 * trained['8']['svm']['test']:.1f} ({100 * trained['8']['svm']['val']:>5.1f})" in text


def test_an_encoder_with_random_weights_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([*DIGITS, "--encoder", "ConvNet", "--heads", "[knn]"])
    assert list(report(tmp_path)["accuracy"]) == ["random weights"]


class OneClass(Digits):
    """Training images of the digit 3 alone."""

    def load(self):
        splits = super().load()
        splits.train.label[:] = 3
        return splits


class TrainingAlone(Digits):
    """No images to measure on."""

    def load(self):
        splits = super().load()
        return Splits(splits.class_names, splits.train)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--encoder", "resnt18"], "did you mean 'resnet18'"),
        (["--encoder", "ConvNet", "--weights", "nowhere.pt"], "no file nowhere.pt"),
        (["--encoder", "ConvNet", "--heads", "[knn,forest]"], "no head 'forest': heads are knn, logistic, svm, sgd"),
        (["--encoder", "ConvNet", "--heads", "[]"], "heads are empty"),
        (["--encoder", "ConvNet", "--k", "0"], "k is 0: it must be at least 1"),
        (["--encoder", "alexnet"], "choose larger images"),
        (["--encoder", "ConvNet", "--data", f"{__name__}.OneClass"], "are of 1 class"),
        (["--encoder", "ConvNet", "--data", f"{__name__}.TrainingAlone"], "no labelled validation or test images"),
        (["--encoder", "ConvNet", "--data", "Digts"], "did you mean 'Digits'"),
        ([], "encoder"),
    ],
)
def test_a_mistake_is_said_with_what_to_do_and_leaves_no_directory(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace("[", r"\[")):
        main([*DIGITS, *args])
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_more_neighbours_than_there_are_images_are_said_and_the_report_has_those_that_vote(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    main([*DIGITS, "--encoder", "ConvNet", "--heads", "[knn]", "--k", "5000"])
    assert "k is 5000, and there are 1257 labelled training images: all of them vote." in capsys.readouterr().out
    assert report(tmp_path)["protocol"]["knn"]["k"] == 1257
