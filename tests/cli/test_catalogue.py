"""``recipes list`` shows every recipe in its family with its configs, and fits the terminal."""

import re
import sys

import pytest
import yaml

import recipes
from recipes.cli import main
from recipes.cli.catalogue import config_file, config_names, data_names, families, recipe_names, table


def test_every_recipe_is_in_one_family_which_is_its_package():
    listed = [name for names in families().values() for name in names]
    assert sorted(listed) == sorted(recipe_names())
    for family, names in families().items():
        package = getattr(recipes, family)
        assert all(getattr(package, name) is getattr(recipes, name) for name in names)


def test_every_config_stands_below_its_recipe():
    recipe, found = None, {}
    for line in table().splitlines():
        if match := re.match(r"  (\w+) ", line):
            recipe = match[1]
        elif match := re.match(r"    (\S+) ", line):
            found[match[1]] = recipe
    assert found == {
        name: yaml.safe_load(config_file(name).read_text())["model"]["class_path"].rpartition(".")[2]
        for name in config_names()
    }


def test_a_config_is_in_the_folder_of_its_recipes_family():
    for family, names in families().items():
        for name in config_names():
            path = config_file(name)
            if yaml.safe_load(path.read_text())["model"]["class_path"].rpartition(".")[2] in names:
                assert path.parent.name == family


@pytest.mark.parametrize("width", [70, 80, 120])
def test_descriptions_are_wrapped_to_the_width_and_aligned(width):
    narrow = table(width=width).splitlines()
    assert max(map(len, narrow)) <= width
    titles = [line for line in table().splitlines() if line and not line.startswith(" ")]
    assert titles == [line for line in narrow if line and not line.startswith(" ")]
    words = [line.split() for line in (table(), table(width=width))]
    assert words[0] == words[1]  # nothing is cut
    columns = {re.match(r" +\S+ +", line).end() for line in table().splitlines() if line.startswith(" ")}
    assert len(columns) == 1


def test_data_modules_are_a_group_of_their_own():
    last = table().split("\n\n")[-1].splitlines()
    assert last[0].startswith("DataModules")
    assert [line.split()[0] for line in last[1:]] == data_names()


def test_one_family_is_shown_alone(capsys):
    main(["list", "--family", "contrastive"])
    printed = capsys.readouterr().out
    assert printed == table("contrastive")
    assert "simclr-digits" in printed
    assert "BYOL" not in printed
    assert "DataModules" not in printed


def test_an_unknown_family_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["list", "--family", "contrastiv"])
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert "family is contrastiv: it must be one of bootstrap, " in line
    assert "did you mean 'contrastive'?" in line


def test_a_terminal_gets_wrapped_lines_and_a_pipe_does_not(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    main(["list"])
    assert capsys.readouterr().out == table()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main(["list"])
    assert capsys.readouterr().out == table(width=90)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_it_does_before_it_names_its_paper(name):
    first = getattr(recipes, name).__doc__.strip().splitlines()[0]
    what = first.partition("(")[0]
    assert len(what.split()) >= 5
    assert first.endswith(".")


def test_help_of_the_list_names_the_families(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["list", "--help"])
    assert stopped.value.code == 0
    assert "contrastive" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--name", "--runs", "--compile", "--import"])
def test_help_of_fit_shows_the_options_of_the_run_together(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--help"])
    assert stopped.value.code == 0
    group = capsys.readouterr().out.partition("Options of the run:\n")[2].partition("\n\n")[0]
    assert f"  {option} " in group
