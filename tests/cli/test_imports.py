"""Classes of the user's own are found by the command, and an import that fails is explained in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import recipes
from recipes.base.imports import import_named, search_also
from recipes.cli import main
from recipes.cli.arguments import taken_imports
from tests.helpers.own_modules import forgotten

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", r"ignore:\s*Importing '.*' is not allowed")

ENCODER = {"class_path": "recipes.nn.ConvNet", "init_args": {"in_channels": 1, "widths": [4]}}
RECIPE = """
import recipes

PLACE = {place!r}

class Mine(recipes.SimCLR):
    pass

class Helper:
    pass
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with forgotten(monkeypatch):
        yield


def write(path, text=None):
    """Writes a module with a recipe, or the text given."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(RECIPE.format(place=str(path)) if text is None else text)


def config(path, class_path="mine.Mine", given=None, **arguments):
    """Writes a config of a tiny recipe for the digits."""
    model = {"class_path": class_path, "init_args": {"encoder": ENCODER, **arguments}}
    data = {"class_path": "datamodules.Digits", "init_args": {"batch_size": 512}}
    trainer = {"max_steps": 1, "limit_test_batches": 0, "limit_val_batches": 0, "accelerator": "cpu"}
    imports = {} if given is None else {"import": given}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    config = {**imports, "model": {**model}, "data": data, "trainer": trainer, "pictures": {"points": 20}}
    config["model"]["init_args"] |= {"scheduler": None, "lr_batch_size": None}
    Path(path).write_text(yaml.safe_dump(config))


def refused(args, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recipes: error: ")]
    return line


def parsed(*args, capsys):
    """The configuration that the command would run with."""
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *args, "--print_config"])
    assert stopped.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_a_module_beside_the_config_is_found(capsys):
    write("sub/mine.py")
    config("sub/mine.yaml")
    assert parsed("--config", "sub/mine.yaml", capsys=capsys)["model"]["class_path"] == "mine.Mine"


def test_a_module_in_the_current_folder_is_found(capsys):
    write("mine.py")
    config("sub/mine.yaml")
    assert parsed("--config", "sub/mine.yaml", capsys=capsys)["model"]["class_path"] == "mine.Mine"


def test_a_module_beside_the_config_wins_over_one_in_the_current_folder(capsys):
    write("mine.py")
    write("sub/mine.py")
    config("sub/mine.yaml")
    parsed("--config", "sub/mine.yaml", capsys=capsys)
    assert sys.modules["mine"].PLACE == "sub/mine.py"


def test_no_file_hides_an_installed_package(capsys):
    write("colorsys.py", "raise SystemExit('hidden')")
    write("mine.py", RECIPE.format(place="") + "import colorsys\n")
    config("mine.yaml")
    parsed("--config", "mine.yaml", capsys=capsys)
    assert Path(sys.modules["colorsys"].__file__).parent != Path.cwd()


@pytest.mark.parametrize("given", ["mine.py", ["mine.py"], "mine"])
def test_the_import_of_a_config_is_relative_to_its_folder(given, capsys):
    write("sub/mine.py")
    config("sub/mine.yaml", given=given)
    assert parsed("--config", "sub/mine.yaml", capsys=capsys)["model"]["class_path"] == "mine.Mine"


def test_several_modules_are_imported_from_the_command_line_and_the_config(capsys):
    for name in ("one", "two", "three"):
        write(f"elsewhere/{name}.py")
    write("sub/mine.py")
    config("sub/mine.yaml", given="mine.py")
    args = ["--import", "elsewhere/one.py", "--import=elsewhere/two.py", "--config", "sub/mine.yaml"]
    said = parsed(*args, "--import", "elsewhere/three.py", capsys=capsys)
    assert said["import"] == ["elsewhere/one.py", "elsewhere/two.py", "elsewhere/three.py", "sub/mine.py"]
    assert {"one", "two", "three", "mine"} <= set(sys.modules)


@pytest.mark.slow
def test_the_config_of_a_run_keeps_its_import_and_runs_again():
    write("sub/mine.py")
    config("sub/mine.yaml", given="mine.py")
    main(["fit", "--config", "sub/mine.yaml"])
    (run,) = Path("runs/mine").iterdir()
    assert yaml.safe_load((run / "config.yaml").read_text())["import"] == ["sub/mine.py"]
    main(["fit", "--config", str(run / "config.yaml"), "--runs", "again"])
    assert type(recipes.load(next(Path("again").glob("*/*")))).__name__ == "Mine"


def test_a_module_of_a_package_is_named_by_its_path_or_its_file(capsys):
    write("mine/__init__.py", "")
    write("mine/methods/__init__.py", "")
    write("mine/methods/recipes.py")
    config("mine.yaml", class_path="mine.methods.recipes.Mine")
    for name in ("mine.methods.recipes", "mine/methods/recipes.py"):
        said = parsed("--import", name, "--config", "mine.yaml", capsys=capsys)
        assert said["model"]["class_path"] == "mine.methods.recipes.Mine"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.py", ["there is no file", "nowhere.py"]),
        ("nowhere", ["there is no module 'nowhere'", "not installed", "{cwd}", "--import FILE"]),
        ("not-a-name.py", ["not-a-name", "rename the file"]),
        ("json.py", ["'json' already belongs to", "rename the file"]),
        ("recipes.py", ["'recipes' already belongs to", "rename the file"]),
        ("sys.py", ["'sys' already belongs to Python itself"]),
        ("needs.py", ["module needs cannot be imported", "No module named 'not_installed'", "needs.py, line 2"]),
        ("raises.py", ["module raises cannot be imported", "ZeroDivisionError: division by zero", "raises.py, line 3"]),
        ("syntax.py", ["module syntax cannot be imported", "SyntaxError", "syntax.py, line 2"]),
        ("exits.py", ["module exits cannot be imported", "SystemExit: 0", "exits.py, line 2"]),
        (".", ["import is .", "a folder", "give a Python file"]),
        ("..", ["import is ..", "a folder"]),
        ("some/folder", ["import is some/folder", "a folder"]),
        ("some/where", ["import is some/where", "no module name"]),
        ("mine.yaml/", ["no module name"]),
        ("not\0a name", ["no module name"]),
    ],
)
def test_a_module_that_cannot_be_imported_is_explained(name, words, capsys):
    for file in ("json.py", "recipes.py", "sys.py", "not-a-name.py"):
        write(file, "")
    Path("some/folder").mkdir(parents=True)
    write("exits.py", "import sys\nsys.exit(0)\n")
    write("needs.py", "\nimport not_installed\n")
    write("raises.py", "import recipes\n\nx = 1 / 0\n")
    write("syntax.py", "import recipes\nclass :\n")
    line = refused(["fit", "--config", "simclr-digits", "--import", name], capsys)
    for word in words:
        assert word.format(cwd=os.getcwd()) in line


def test_two_files_of_the_same_name_are_refused(capsys):
    write("one/mine.py")
    write("two/mine.py")
    line = refused(["probe", "--import", "one/mine.py", "--import", "two/mine.py"], capsys)
    assert "two/mine.py" in line
    assert f"'mine' already belongs to {Path('one/mine.py').resolve()}" in line


def test_the_same_file_may_be_named_twice():
    write("mine.py")
    for name in ("mine.py", str(Path("mine.py").resolve()), "mine"):
        search_also(".")
        import_named(name)


@pytest.mark.parametrize("args", [["fit", "--import"], ["fit", "--import", "--config", "simclr-digits"]])
def test_an_import_without_a_name_is_refused(args, capsys):
    assert "--import needs a value" in refused(args, capsys)


def test_imports_are_taken_out_of_the_arguments():
    args = ["fit", "--import", "a.py", "--config", "x", "--import=b"]
    assert taken_imports(args) == (["fit", "--config", "x"], ["a.py", "b"])


@pytest.mark.parametrize(
    ("class_path", "arguments", "words"),
    [
        ("nowhere.Mine", {}, ["there is no module 'nowhere'", "{cwd}"]),
        ("mine.Mnie", {}, ["no class 'mine.Mnie'", "did you mean 'Mine'?", "mine.py"]),
        ("raises.Mine", {}, ["module raises cannot be imported", "ZeroDivisionError", "raises.py, line 1"]),
        ("mine.Helper", {}, ["model is mine.Helper", "must be a recipe", "recipes.Recipe"]),
        ("os.system", {}, ["class_path is os.system", "a class, not a function"]),
        ("mine.Mine", {"temprature": 1}, ["Mine has no argument 'temprature'", "did you mean 'temperature'?"]),
        ("mine.Mine", {"projection_dim": "many"}, ["projection_dim is many: it must be an integer"]),
        ("mine.Mine", {"encoder": {**ENCODER, "init_args": {"in_channels": "x"}}}, ["in_channels is x: it must be an"]),
        ("mine.Mine", {"encoder": {**ENCODER, "init_args": {"width": 3}}}, ["ConvNet has no argument 'width'"]),
        ("mine.Mine", {"encoder": {"class_path": "nowhere.Net"}}, ["there is no module 'nowhere'"]),
        ("mine.Mine", {"encoder": {"class_path": "mine.Helper"}}, ["encoder is mine.Helper", "inherits from Encoder"]),
        ("mine.Mine", {"optimizer": {"class_path": "torch.optim.AdmW"}}, ["'torch.optim.AdmW'", "mean 'AdamW'?"]),
        (
            "mine.Mine",
            {"optimizer": {"class_path": "subprocess.Popen"}},
            ["optimizer is subprocess.Popen", "Optimizer"],
        ),
        (
            "mine.Mine",
            {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lrr": 1}}},
            ["AdamW has no argument 'lrr'", "did you mean 'lr'?"],
        ),
        (
            "mine.Mine",
            {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": "fast"}}},
            ["lr is fast: it must be a number"],
        ),
        (
            "mine.Mine",
            {"views": {"class_path": "recipes.augment.SimCLRViews", "init_args": {"size": "big"}}},
            ["size is big: it must be an integer or null"],
        ),
    ],
)
def test_a_wrong_class_or_argument_in_a_config_is_named_in_one_line(class_path, arguments, words, capsys):
    write("mine.py")
    write("raises.py", "x = 1 / 0\n")
    config("mine.yaml", class_path=class_path, **arguments)
    line = refused(["fit", "--config", "mine.yaml"], capsys)
    for word in words:
        assert word.format(cwd=os.getcwd()) in line
    assert "class_path'" not in line  # no dump of the configuration
    assert "Union" not in line


@pytest.mark.parametrize("given", [3, {"file": "mine.py"}, [["mine.py"]]])
def test_an_import_that_is_no_name_is_refused(given, capsys):
    config("mine.yaml", given=given)
    assert "import is" in refused(["fit", "--config", "mine.yaml"], capsys)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "advise", "probe", "compare", "export"])
def test_the_help_of_every_command_that_reads_a_run_shows_import(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "--import" in capsys.readouterr().out


@pytest.mark.slow
def test_two_devices_and_their_workers_import_the_module_too():
    """The second process is started by Lightning, which repeats the command line."""
    write("elsewhere/mine.py")
    config("sub/mine.yaml", given="../elsewhere/mine.py")
    code = "import sys; sys.path.pop(0); from recipes.cli import main; main()"  # as the installed script does
    Path("recipes-script").write_text(code)
    options = ["--trainer.devices", "2", "--data.num_workers", "1", "--trainer.enable_progress_bar", "false"]
    command = [sys.executable, "recipes-script", "fit", "--config", "sub/mine.yaml", *options]
    project = str(Path(recipes.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": project, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    (run,) = Path("runs/mine").iterdir()
    assert (run / "checkpoints" / "last.ckpt").exists()


def test_the_import_is_json_in_the_options_whatever_it_contains(capsys):
    write("a, b/mine.py")
    assert parsed("--import", "a, b/mine.py", "--config", "simclr-digits", capsys=capsys)["import"] == ["a, b/mine.py"]
