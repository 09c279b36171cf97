import os
import stat

import pytest

from recipes.cli.run_directory import RUN_DIRECTORY, new_directory
from recipes.cli.slurm import earlier_checkpoint, job, requeue


@pytest.fixture(autouse=True)
def _job(monkeypatch):
    monkeypatch.delenv(RUN_DIRECTORY, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "12")


@pytest.fixture
def in_array(monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")


def run_of(runs, config, saved=True):
    directory = new_directory(runs)
    (directory / "config.yaml").write_text(config)
    (directory / "checkpoints").mkdir()
    if saved:
        (directory / "checkpoints" / "last.ckpt").touch()
    return directory / "checkpoints" / "last.ckpt"


def test_the_name_of_a_directory_ends_with_the_job(tmp_path, monkeypatch):
    first, second = new_directory(tmp_path), new_directory(tmp_path)
    assert first.name.endswith("_job-12")
    assert second.name.endswith("_job-12")
    assert first != second
    monkeypatch.delenv("SLURM_JOB_ID")
    assert "job" not in new_directory(tmp_path).name


def test_a_task_of_an_array_has_its_number(in_array, tmp_path):
    assert job() == "10_2"
    assert new_directory(tmp_path).name.endswith("_job-10_2")


def test_only_a_restarted_job_finds_its_newest_run_with_the_same_configuration(tmp_path, monkeypatch):
    newest = [run_of(tmp_path, "lr: 1") for _ in range(2)][0]
    os.utime(newest, (2e9, 2e9))
    run_of(tmp_path, "lr: 1", saved=False)
    run_of(tmp_path, "lr: 2")
    monkeypatch.setenv("SLURM_JOB_ID", "112")
    run_of(tmp_path, "lr: 1")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert earlier_checkpoint(tmp_path, "lr: 1") is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert earlier_checkpoint(tmp_path, "lr: 1") == newest
    assert earlier_checkpoint(tmp_path, "lr: 3") is None


def test_scontrol_gets_the_number_of_the_job_and_its_failure_is_told(in_array, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    requeue()
    assert "job 10_2 is not requeued, because 'scontrol requeue 10_2' failed: No such file" in capsys.readouterr().err
    for code, words in ((3, "failed: it ended with code 3"), (0, "recipes: job 10_2 is requeued\n")):
        script = tmp_path / "scontrol"
        script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexit {code}\n')
        script.chmod(script.stat().st_mode | stat.S_IEXEC)
        requeue()
        assert words in capsys.readouterr().err
        assert (tmp_path / "asked").read_text() == "requeue 10_2\n"
