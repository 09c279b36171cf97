"""What there is: recipes, DataModules and configs, by name."""

from pathlib import Path

from recipes.launch.configs import CONFIGS, config_file, config_names

__all__ = ["CONFIGS", "OVERVIEW", "config_file", "config_names", "data_names", "recipe_names", "table"]

OVERVIEW = """\
usage: recipes {fit,validate,test,predict,advise,probe,compare,export,list} [options]

  fit        train, then measure the trained encoder on the test images
  validate   measure a checkpoint on the validation images
  test       measure a checkpoint on the test images
  predict    write features, and the classes of unlabelled pictures, to files
  advise     say which strategy of transfer learning suits an encoder and your pictures, and write its config
  probe      compare classifiers on the frozen features of every stage of an encoder
  compare    compare finished runs in one table and figures, averaged over their seeds
  export     write a trained classifier for torch.export, ONNX and safetensors
  list       show the recipes, DataModules and configs there are

  recipes fit --config simclr-digits                       a packaged config by name, or any YAML by path
  recipes fit --config simclr-digits --model.temperature 0.2 --trainer.max_epochs 50
  recipes fit --config simclr-folder --data.root pictures  your own pictures
  recipes fit --model SimCLR --data Digits --model.encoder ConvNet
  recipes fit --ckpt_path runs/simclr-digits/<time>        go on with a run
  recipes test --ckpt_path runs/simclr-digits/<time>       a run's directory, or a checkpoint file
  recipes fit --config simclr-digits --trainer.logger WandbLogger
  recipes advise --data ImageFolder --data.root pictures --encoder resnet18 --weights DEFAULT

  recipes fit --help                    all options
  recipes fit --model.help SimCLR       those of a recipe
  recipes fit --data.help Digits        those of a DataModule
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


def table() -> str:
    """All recipes, DataModules and configs with one line each."""
    import datamodules
    import recipes

    parts = {
        "Recipes (--model)": [(name, _first_line(getattr(recipes, name).__doc__)) for name in recipe_names()],
        "DataModules (--data)": [(name, _first_line(getattr(datamodules, name).__doc__)) for name in data_names()],
        "Configs (--config)": [(name, _first_comment(config_file(name))) for name in config_names()],
    }
    width = max(len(name) for rows in parts.values() for name, _ in rows)
    return "\n".join(
        f"{title}\n" + "".join(f"  {name:{width}}  {line}\n" for name, line in rows) for title, rows in parts.items()
    )


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().split("\n")[0]


def _first_comment(path: Path) -> str:
    return path.read_text().split("\n")[0].removeprefix("#").strip()
