import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import datamodules
import losses
import recipes

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)], check=True, timeout=280)
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_installs_three_packages_and_nothing_else(names):
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"recipes", "datamodules", "losses"}


def test_the_wheel_holds_every_module_and_every_config_and_is_typed(names):
    files = [path for package in ("recipes", "datamodules", "losses") for path in (ROOT / package).rglob("*.py")]
    files += list((ROOT / "recipes" / "configs").glob("*/*.yaml"))
    assert {path.relative_to(ROOT).as_posix() for path in files} <= names
    assert {"recipes/py.typed", "datamodules/py.typed", "losses/py.typed"} <= names


def test_the_wheel_holds_the_licence_and_the_command(names):
    assert any(name.endswith("/LICENSE") for name in names)
    assert any(name.endswith("/entry_points.txt") for name in names)


def test_the_packages_under_test_are_those_of_this_checkout():
    """Their names are general, and another distribution could bring its own."""
    for package in (recipes, datamodules, losses):
        assert Path(package.__file__).is_relative_to(ROOT)
