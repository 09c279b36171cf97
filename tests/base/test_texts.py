"""Damaged and hostile texts end in one line and in bounded time."""

import time

import pytest
import torch
import yaml

import recipes
from recipes.base.texts import mapping_from_json, mapping_from_yaml, text_of
from recipes.cli import main
from recipes.evaluation.runs import find_runs
from recipes.launch.grid import Grid
from recipes.launch.results import measured_before

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)
DAMAGED = {
    "an alias bomb": BOMB,
    "an alias to itself": "a: &a [*a]",
    "an alias without a value": "a: *b",
    "2,000 levels of lists": "a: " + "[" * 2000 + "]" * 2000,
    "2,000 levels of mappings": "\n".join(" " * n + "a:" for n in range(2000)),
    "a list": "[1, 2]",
    "null": "null",
    "nothing": "",
    "a word": "hello",
    "keys that are no names": "{1: 2}",
    "a tag": "a: !!python/object/apply:os.system ['touch ran']",
    "an unknown tag": "a: !mine 3",
    "zero bytes": "a: \0",
    "zero bytes alone": "\0" * 100,
    "broken YAML": "a: [1",
    "broken YAML in several lines": "a: b\n c: d\n- e",
    "tabs": "a:\n\t- b",
    "two documents": "a: 1\n---\nb: 2",
    "a number with 10,000 digits": f"a: {'1' * 10_000}",
    "a key twice as a list": "? [a, b]\n: c",
    "two million characters": "a: " + "b" * 2_000_000,
}
KEEPS_RUNNING = {"a number that is text": "a: 2026-99-99", "an alias": "a: &a {b: 1}\nc: *a"}


@pytest.mark.parametrize("text", [*DAMAGED.values(), None, 3, b"a: 1", ["a"]], ids=[*DAMAGED, "None", "3", "b", "list"])
def test_a_damaged_text_is_refused_in_one_line_and_at_once(text):
    start = time.monotonic()
    with pytest.raises(ValueError, match="^the text ") as refusal:
        mapping_from_yaml(text, "the text")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("text", KEEPS_RUNNING.values(), ids=KEEPS_RUNNING)
def test_a_text_that_is_unusual_only_is_read(text):
    assert "a" in mapping_from_yaml(text, "the text")


def refused(args, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "recipes: error: " in line]
    return line


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("entry", ["model", "config"])
def test_a_checkpoint_with_a_damaged_text_is_refused(entry, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = {"class_path": "recipes.nn.ConvNet", "init_args": {"in_channels": 1, "widths": [4]}}
    model = {"class_path": "recipes.SimCLR", "init_args": {"encoder": encoder}}
    texts = {"model": yaml.safe_dump(model), "config": yaml.safe_dump({"model": model}), entry: text}
    torch.save({**texts, "state_dict": {}, "pytorch-lightning_version": "2.6.6"}, "some.ckpt")
    if entry == "model":
        with pytest.raises(ValueError, match=r"^the configuration in some\.ckpt cannot be used: ") as refusal:
            recipes.load("some.ckpt")
        assert "\n" not in str(refusal.value)
    else:
        assert "some.ckpt" in refused(["fit", "--ckpt_path", "some.ckpt"], capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"some.ckpt"}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_config_is_refused_by_name(text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    assert "mine.yaml" in refused(["fit", "--config", "mine.yaml"], capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml"}


@pytest.mark.parametrize("file", ["/bin/ls", "/dev/zero"])
def test_a_config_that_is_no_text_is_refused(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert file in refused(["fit", "--config", file], capsys)


def test_a_text_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_bytes("a: ä".encode("latin-1"))
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        text_of(tmp_path / "mine.yaml")


@pytest.mark.parametrize("text", ["", "{", '{"a": ', "[1]", "null", "[" * 100_000, "\0"])
def test_a_json_file_that_was_cut_is_named(text, tmp_path):
    file = tmp_path / "result.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"result\.json") as refusal:
        mapping_from_json(file, str(file))
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"^the file of results .*result\.json"):
        measured_before(Grid(variants={"one": "--config supervised-digits"}), [0], file)


@pytest.mark.parametrize("name", ["evaluation.json", "config.yaml"])
def test_a_run_with_a_cut_file_is_left_out_of_a_comparison(name, tmp_path):
    run = tmp_path / "runs" / "some" / "2026-01-01_00-00-00"
    run.mkdir(parents=True)
    (run / name).write_text("{")
    with pytest.raises(ValueError, match=rf"is left out: .*{name}"):
        find_runs([tmp_path / "runs"])
