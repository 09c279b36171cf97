import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torchvision import models

import recipes
from recipes.cli import main as command
from recipes.cli.commands.advise import main
from recipes.nn import TorchvisionEncoder
from recipes.nn.encoders.torchvision import source_head
from recipes.transfer.advisor import rule

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

CPU = ["--accelerator", "cpu"]
SHORT = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
SHORT += ["--pictures.points", "10", "--probe.draws", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run that trained a small encoder and a classifier."""
    folder = tmp_path_factory.mktemp("source")
    before = os.getcwd()
    os.chdir(folder)
    try:
        small = ["--model.encoder.widths", "[8,16,32]", "--data.size", "8", *SHORT]
        command(["fit", "--config", "supervised-digits", *small])
    finally:
        os.chdir(before)
    (directory,) = folder.glob("runs/*/*")
    return str(directory)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def advise(*args):
    main(["--data", "Digits", "--data.size", "8", *CPU, *args])


def pictures(root, classes, side=16):
    """Writes the given number of images of each class, each in its own colour."""
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (side, side), (80 * number, 9 * i % 256, 30)).save(root / name / f"{i}.png")
    return ["--data", "ImageFolder", "--data.root", str(root), "--data.image_size", str(side)]


def test_the_report_says_data_similarity_quadrant_strategy_and_the_command_to_run(run, capsys):
    advise("--encoder", run)
    text = " ".join(capsys.readouterr().out.split())
    assert "Digits: 1,257 labelled training images of 10 classes, from 122 (8) to 128 (3), the median 126.5" in text
    report = json.loads(Path("advice.json").read_text())
    (encoder,) = report["encoders"]
    assert f"neighbours of its features are right for {encoder['scores']['knn']:.1%} of the images" in text
    assert f"of a random encoder's for {encoder['random']['knn']:.1%}" in text
    assert f"explain {encoder['similarity']:.0%} of the label variance that random encoders leave unexplained" in text
    assert f"similar from {encoder['similar_from']:.0%} on" in text
    assert "3 standard deviations of 8 random encoders on 1,000 images" in text
    assert len(encoder["compared"]["random"]) == 8
    advice = report["advice"]
    assert f"{advice['size']} data, {advice['kinship']} images. Advice: {advice['strategy']}." in text
    assert "recipes fit --config advice.yaml" in text
    assert encoder["leep"] is not None  # its recipe has a classifier
    assert f"{encoder['leep']:.3f}" in text


def test_the_advice_runs_as_it_stands(run, monkeypatch):
    monkeypatch.setattr(rule, "THRESHOLDS", rule.THRESHOLDS._replace(large=1, similar=0))
    advise("--encoder", run, "--output", "out/advice.yaml", "--seed", "7")
    text = Path("out/advice.yaml").read_text()
    assert re.match(r"# fine-tune-all of .* on Digits, advised by recipes advise\n# The data are large", text)
    config = yaml.safe_load(text)
    assert config["seed_everything"] == 7
    assert config["data"] == {"class_path": "datamodules.Digits", "init_args": {"size": 8, "batch_size": 64}}
    command(["fit", "--config", "out/advice.yaml", *SHORT, "--model.optimizer.lr", "0"])
    (directory,) = (path for path in (os.scandir("runs/advice")))
    trained, source = recipes.load(directory.path).encoder, recipes.load(run).encoder
    for name, value in source.named_parameters():  # lr 0: where training began is where it ends
        assert torch.equal(value, trained.get_parameter(name))


def pictures_of_noise():
    """Grey images of noise, which no encoder can classify."""
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        os.makedirs(f"noise/{name}")
        for i in range(12):
            pixels = torch.randint(256, (8, 8), generator=generator).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(f"noise/{name}/{i}.png")
    return ["--data", "ImageFolder", "--data.root", "noise", "--data.image_size", "8", "--data.channels", "1"]


def test_several_encoders_are_ranked_by_log_me_and_the_best_is_advised(run, capsys):
    for names in (["ConvNet", run], [run, "ConvNet"]):  # one of the two has to be turned round
        with pytest.warns(UserWarning, match="ConvNet has random weights, so there is nothing to transfer"):
            advise("--encoder", *names, "--weights", "null")
        found = json.loads(Path("advice.json").read_text())["encoders"]
        assert found[0]["scores"]["log_me"] > found[1]["scores"]["log_me"]
        chosen = yaml.safe_load(Path("advice.yaml").read_text())["model"]["init_args"]["encoder"]
        assert chosen == found[0]["config"]
        text = capsys.readouterr().out
        assert f"{found[0]['encoder']}: large data" in " ".join(text.split())
    assert "Sorted by LogME, best first" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_verifying_trains_all_strategies_and_says_whether_the_advice_held(run, capsys):
    advise("--encoder", run, "--verify", "true", "--steps", "2")
    verified = json.loads(Path("advice.json").read_text())["verified"]
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    text = " ".join(text.split())
    strategies = ["feature-extraction", "svm", "fine-tune-last", "fine-tune-all", "from-scratch"]
    assert list(verified["strategies"]) == strategies
    assert verified["held"] is False  # two steps are too few to fine-tune
    assert "The advice did not hold: on the validation images" in text
    assert "fine-tune-all (advised)" in text
    assert "One of the 180 validation images is 0.6 points" in text


def test_torchvision_weights_bring_their_classifier_and_small_images_get_a_warning(monkeypatch, capsys):
    state = models.mobilenet_v3_small().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda url, **options: dict(state))
    advise("--encoder", "mobilenet_v3_small", "--weights", "DEFAULT")
    (encoder,) = json.loads(Path("advice.json").read_text())["encoders"]
    assert encoder["leep"] < 0
    assert encoder["config"]["init_args"] == {"name": "mobilenet_v3_small", "in_channels": 1, "weights": "DEFAULT"}
    text = " ".join(capsys.readouterr().out.split())
    assert "The images are 8 × 8: mobilenet_v3_small works best with about 224 pixels" in text
    assert "try --data.size 224" in text


def test_the_source_head_makes_the_logits_of_the_whole_network(tmp_path):
    network = models.mobilenet_v3_small(num_classes=1000).eval()
    torch.save(network.state_dict(), tmp_path / "whole.pth")
    head = source_head("mobilenet_v3_small", str(tmp_path / "whole.pth"))
    encoder = TorchvisionEncoder("mobilenet_v3_small", weights=str(tmp_path / "whole.pth")).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(head(encoder(image)), network(image))
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    assert source_head("mobilenet_v3_small", str(tmp_path / "encoder.pth")) is None
    assert source_head("mobilenet_v3_small", None) is None


def test_a_network_whose_logits_are_not_linear_has_no_source_head(tmp_path):
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "whole.pth")
    assert source_head("squeezenet1_1", str(tmp_path / "whole.pth")) is None


def no_internet(url, **options):
    from urllib.error import URLError

    raise URLError("no route to host")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "no encoder is given"),
        (["--encoder", "resnt18"], "did you mean 'resnet18'"),
        (["--encoder", "resnet18", "--weights", "IMAGENET"], "for resnet18 one of DEFAULT, IMAGENET1K_V1"),
        (["--encoder", "resnet18", "--weights", "DEFAULT"], "cannot be downloaded .*no route to host.*weights FILE"),
        (["--encoder", "runs/nothing"], "no checkpoint at runs/nothing"),
        (["--encoder", "a", "b", "c", "--weights", "x", "y"], "3 encoders and 2 weights"),
        (["--encoder", "ConvNet", "--verify", "maybe"], "verify is maybe"),
        (["--encoder", "ConvNet", "--data.sice", "3"], "did you mean 'size'"),
        (["--encoder", "ConvNet", "--date", "3"], "there is no option 'date'"),
    ],
)
def test_mistakes_get_one_line(monkeypatch, args, words):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_internet)
    with pytest.raises((ValueError, OSError), match=words) as error:
        advise(*args)
    assert "\n" not in str(error.value)
    assert not os.path.exists("advice.yaml")


def test_weights_that_do_not_fit_are_named_by_layer(run):
    with pytest.raises(ValueError, match="does not fit this ConvNet: .*network.0.weight"):
        advise("--encoder", "ConvNet", "--weights", run)


@pytest.mark.parametrize(
    ("classes", "more", "words"),
    [
        ({"one": 3}, [], "no labels"),
        ({".": 3}, [], "no labels"),
        ({"a": 4, "b": 4}, ["--data.val_fraction", "0", "--verify", "true"], "val_fraction"),
    ],
)
def test_pictures_that_cannot_be_advised_on_are_refused_in_one_line(tmp_path, classes, more, words):
    with pytest.raises(ValueError, match=words):
        main([*pictures(tmp_path / "pictures", classes), *more, *CPU, "--encoder", "ConvNet"])


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in ("--data", "--encoder", "--weights", "--verify", "--steps", "--output", "--seed", "--accelerator"):
        assert option in text
