"""Dependencies point one way: see the list in docs/design.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAMILIES = {
    path.parent.name
    for path in (ROOT / "recipes").glob("*/__init__.py")
    if path.parent.name not in ("nn", "augment", "optim", "callbacks", "commands")
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def offenders(paths, *forbidden):
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in imports(path)
        if any(name == top or name.startswith(f"{top}.") for top in forbidden)
    ]


def test_losses_import_only_torch_and_the_standard_library():
    assert not offenders(modules("losses"), "recipes", "datamodules", "lightning", "torch.distributed")


def test_datamodules_know_no_recipe_and_no_loss():
    assert not offenders(modules("datamodules"), "recipes", "losses")


def test_building_blocks_import_no_recipe_and_nothing_on_top():
    blocks = modules("recipes/nn", "recipes/augment", "recipes/optim")
    families = [f"recipes.{family}" for family in FAMILIES]
    assert not offenders(blocks, "recipes.recipe", "recipes.callbacks", "recipes.cli", "datamodules", *families)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_recipe_imports_no_recipe_of_another_family_and_nothing_on_top(family):
    others = [f"recipes.{other}" for other in FAMILIES - {family}]
    assert not offenders(modules(f"recipes/{family}"), "recipes.callbacks", "recipes.commands", "recipes.cli", *others)


def test_features_and_probes_know_no_recipe_and_nothing_on_top():
    families = [f"recipes.{family}" for family in FAMILIES]
    below = [ROOT / "recipes" / name for name in ("features.py", "probes.py", "recipe.py", "classifier.py")]
    assert not offenders(below, "recipes.callbacks", "recipes.commands", "recipes.cli", *families)


def test_commands_are_below_the_command_line():
    assert not offenders(modules("recipes/commands"), "recipes.cli")


def test_only_the_command_line_stands_above_the_callbacks():
    families = [f"recipes.{family}" for family in FAMILIES]
    assert not offenders(modules("recipes/callbacks"), "recipes.cli", "recipes.catalogue", *families)


def test_no_recipe_names_a_dataset_in_its_code():
    names = ("cifar", "mnist", "imagenet", "digits", "svhn", "stl10")
    for family in FAMILIES:
        for path in modules(f"recipes/{family}"):
            tree = ast.parse(path.read_text())
            words = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
            words += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
            assert not [word for word in words for name in names if name in word.lower()]
