"""The packaged configs, by name."""

from pathlib import Path

from recipes.errors import nearest

CONFIGS = Path(__file__).parents[1] / "configs"


def config_names() -> list[str]:
    """Returns the names of the packaged configs."""
    return sorted(path.stem for path in CONFIGS.glob("*/*.yaml"))


def config_file(name: str) -> Path:
    """Returns the file of a packaged config.

    Raises:
        FileNotFoundError: if there is no such config.
    """
    for path in CONFIGS.glob("*/*.yaml"):
        if path.stem == name:
            return path
    raise FileNotFoundError(
        f"no config {name!r}{nearest(name, config_names())}: give a name from 'recipes list' or a path to a YAML file"
    )
