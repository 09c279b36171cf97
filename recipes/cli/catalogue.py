"""The names of all recipes, DataModules and configs, and what ``recipes list`` prints of them."""

import textwrap
from pathlib import Path

import yaml

from recipes.errors import nearest
from recipes.launch.configs import CONFIGS, config_file, config_names

__all__ = ["CONFIGS", "OVERVIEW", "config_file", "config_names", "data_names", "recipe_names", "table"]

_NARROWEST = 30  # characters of a column of descriptions

OVERVIEW = """\
usage: recipes {fit,validate,test,predict,advise,probe,compare,export,list} [options]

  fit        train a recipe, then evaluate its encoder on the test images
  validate   evaluate a checkpoint on the validation images
  test       evaluate a checkpoint on the test images
  predict    write features, and for classifiers the predicted classes, to a file
  advise     recommend a transfer-learning strategy for an encoder and your images, and write its config
  probe      evaluate classifiers on the frozen features of every stage of an encoder
  compare    compare finished runs in one table and figures, averaged over their seeds
  export     write a trained model for torch.export, ONNX and safetensors
  list       list the recipes with their configs, and the DataModules

  recipes fit --config simclr-digits                       a packaged config by name, or a YAML file by path
  recipes fit --config simclr-digits --model.temperature 0.2 --trainer.max_epochs 50
  recipes fit --config simclr-folder --data.root pictures  your own images
  recipes fit --model SimCLR --data Digits --model.encoder ConvNet
  recipes fit --config simsiam.yaml --import simsiam.py    a recipe of your own
  recipes fit --ckpt_path runs/simclr-digits/<time>        resume a run
  recipes test --ckpt_path runs/simclr-digits/<time>       a run directory, or a checkpoint file
  recipes fit --config simclr-digits --trainer.logger WandbLogger
  recipes advise --data ImageFolder --data.root pictures --encoder resnet18 --weights DEFAULT

  recipes COMMAND --help                all options of a command
  recipes fit --model.help SimCLR       the options of a recipe
  recipes fit --data.help Digits        the options of a DataModule
  recipes list --family contrastive     the recipes of one family
"""


def recipe_names() -> list[str]:
    """The names of all recipes."""
    import recipes

    return [name for name in recipes.__all__ if name[0].isupper() and name != "Recipe"]


def data_names() -> list[str]:
    """The names of all DataModules."""
    import datamodules

    return [
        name
        for name in datamodules.__all__
        if name != "ImageDataModule" and issubclass(getattr(datamodules, name), datamodules.ImageDataModule)
    ]


def families() -> dict[str, list[str]]:
    """The names of the recipes in each family, which is the package that the recipe is in."""
    import recipes

    found: dict[str, list[str]] = {}
    for name in sorted(recipe_names(), key=str.lower):
        family = getattr(recipes, name).__module__.split(".")[1]
        found.setdefault(family, []).append(name)
    return dict(sorted(found.items()))


def table(family: str | None = None, width: int | None = None) -> str:
    """All recipes by family with their configs, and all DataModules, with one line of description each.

    Args:
        family: the only family to show, without DataModules; None shows everything.
        width: of the terminal in characters, > 0: longer descriptions are wrapped. None does not wrap.

    Raises:
        ValueError: if there is no such family.
    """
    import datamodules
    import recipes

    known = families()
    if family is not None and family not in known:
        raise ValueError(f"family is {family}: it must be one of {', '.join(known)}{nearest(family, known)}")
    configs: dict[str, list[_Row]] = {}
    for path in sorted(CONFIGS.glob("*/*.yaml"), key=lambda path: path.stem):
        recipe = yaml.safe_load(path.read_text())["model"]["class_path"].rpartition(".")[2]
        configs.setdefault(recipe, []).append((4, path.stem, _first_comment(path)))
    parts: dict[str, list[_Row]] = {}
    for each in known if family is None else [family]:
        rows = parts[f"{each} (--model, with its configs: --config)"] = []
        for name in known[each]:
            rows += [(2, name, _first_line(getattr(recipes, name).__doc__)), *configs.get(name, [])]
    if family is None:
        about = [(2, name, _first_line(getattr(datamodules, name).__doc__)) for name in data_names()]
        parts["DataModules (--data)"] = about
    column = max(indent + len(name) for rows in parts.values() for indent, name, _ in rows) + 2
    return "\n".join(
        f"{title}\n" + "".join(_line(*row, column, width) for row in rows) for title, rows in parts.items()
    )


_Row = tuple[int, str, str]  # indent, name and description


def _line(indent: int, name: str, about: str, column: int, width: int | None) -> str:
    start = f"{' ' * indent}{name}".ljust(column)
    space = max(width - column, _NARROWEST) if width else len(about) + 1
    return start + ("\n" + " " * column).join(textwrap.wrap(about, space)) + "\n"


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().split("\n")[0]


def _first_comment(path: Path) -> str:
    return path.read_text().split("\n")[0].removeprefix("#").strip()
