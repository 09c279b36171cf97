"""Imports point one way, from a room to those below it: see the map in docs/design.md."""

import ast
from pathlib import Path

import pytest

import recipes

ROOT = Path(__file__).parents[2]
ROOMS = [  # from the bottom to the top; rooms on one floor do not import each other
    ["losses", "datamodules", "recipes.errors"],
    ["recipes.augment", "recipes.optim"],
    ["recipes.nn"],
    ["recipes.base"],
    ["recipes.evaluation"],
    ["every family of recipes"],
    ["recipes.plots"],
    ["recipes.callbacks"],
    ["recipes.launch"],
    ["recipes.cli"],
]
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
FAMILIES = {
    f"recipes.{path.parent.name}"
    for path in (ROOT / "recipes").glob("*/__init__.py")
    if f"recipes.{path.parent.name}" not in FLOORS
}
FLOORS |= dict.fromkeys(sorted(FAMILIES), FLOORS.pop("every family of recipes"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def room(name):
    """The room that a module is in; None for the top of ``recipes`` and for other packages."""
    return next((room for room in FLOORS if name == room or name.startswith(f"{room}.")), None)


def in_room(path):
    return room(".".join(path.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize("own", FLOORS)
def test_a_room_imports_only_rooms_below_it(own):
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("losses", "datamodules", "recipes")
        if in_room(path) == own
        for name in imports(path)
        if (other := room(name)) not in (None, own) and FLOORS[other] >= FLOORS[own]
    ]
    assert not offenders


def test_losses_and_datamodules_know_no_recipe_and_losses_only_torch():
    for folder, forbidden in {"losses": ("recipes", "lightning"), "datamodules": ("recipes", "losses")}.items():
        for path in modules(folder):
            assert not [name for name in imports(path) if name.split(".")[0] in forbidden], path
    assert not [path for path in modules("losses") if "torch.distributed" in imports(path)]


@pytest.mark.slow
def test_only_the_command_imports_all_recipes():
    inside = [path for path in modules("recipes") if in_room(path) not in ("recipes.cli", None)]
    top = {"recipes"} | {f"recipes.{name}" for name in recipes.__all__}
    assert not [(path, name) for path in inside for name in imports(path) if name in top]


def test_no_recipe_names_a_dataset_in_its_code():
    names = ("cifar", "mnist", "imagenet", "digits", "svhn", "stl10")
    for family in FAMILIES:
        for path in modules(family.replace(".", "/")):
            tree = ast.parse(path.read_text())
            words = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
            words += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
            assert not [word for word in words for name in names if name in word.lower()]
