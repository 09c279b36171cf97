"""Beside the features of the bank, an evaluation holds a few chunks, however large the bank is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from datamodules import Batch
from recipes.evaluation import chunks
from recipes.evaluation.features import Features, extract
from recipes.evaluation.few_labels import few_label_draws
from recipes.evaluation.representation import measure

CHUNK = 1 << 16
WIDTH, CLASSES = 64, 5


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "BYTES", CHUNK)


def peak(function: Callable[[], object], path: Path) -> int:
    """The largest number of bytes that a function holds at a time in tensors of its own."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = function()
    profiled.export_chrome_trace(str(path / "trace.json"))
    del kept
    events = json.loads((path / "trace.json").read_text())["traceEvents"]
    memory = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    held = most = 0
    for _, size in memory:
        held += size
        most = max(most, held)
    return most


def features(count: int, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % CLASSES
    feature = torch.randn(count, WIDTH, generator=generator)
    feature[torch.arange(count), label] += 6
    return Features(feature, label, torch.arange(count))


@pytest.mark.slow
def test_measuring_a_bank_four_times_as_large_takes_no_more_memory(tmp_path: Path) -> None:
    query = features(100, seed=1)

    def measuring(images: int) -> int:
        bank = features(images)
        few = {5: few_label_draws(bank.label, CLASSES, 5, 10)}
        return peak(lambda: measure(bank, query, CLASSES, 20, 0.07, few), tmp_path)

    small, large = measuring(1000), measuring(4000)  # 4 and 16 chunks of features
    assert 0 < small < 12 * CHUNK  # with the gradients and the history of L-BFGS
    assert large < small + CHUNK  # labels


def test_features_are_collected_in_the_place_where_they_stay(tmp_path: Path) -> None:
    bank = features(4000)

    def batch(rows: list[int]) -> Batch:
        return Batch(bank.feature[rows], bank.label[rows], bank.index[rows])

    loader: DataLoader[Batch] = DataLoader(range(4000), batch_size=100, collate_fn=batch)  # type: ignore[arg-type]
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    found = []
    held = peak(lambda: found.append(extract({"it": nn.Identity()}, loader, trainer)["it"]), tmp_path)
    assert torch.equal(found[0].feature, bank.feature)
    assert bank.feature.nbytes <= held < 1.4 * bank.feature.nbytes  # also labels, indices and a batch
