"""What test_bank.py runs in one process and in two."""

from typing import Any

import torch
from torch import Tensor, nn

from datamodules import Batch
from recipes.evaluation import chunks, knn, linear_probe
from recipes.evaluation.bank import Bank, extract_bank
from recipes.evaluation.features import Features
from recipes.evaluation.linear import _fit, standard
from recipes.evaluation.representation import similar
from tests.helpers.training import quiet_trainer

IMAGES, WIDTH, CLASSES = 300, 12, 4
UNLABELLED = [7, 8, 250]
SHARES = {  # by number of processes
    1: [range(IMAGES)],
    2: [range(0, 300, 3), [row for row in range(IMAGES) if row % 3] + [0, 9, 297]],  # some of both; not as many
}


def features(count: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) * 7 % CLASSES
    feature = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) * 3 + 5
    feature[torch.arange(count), label] += 4
    return Features(feature, label, torch.arange(count))


def bank_of(rows: list[int], dtype: torch.dtype, size: int = 40) -> Bank:
    feature, label, index = features(IMAGES, 0)
    label[UNLABELLED] = -1
    batches = [
        Batch(feature[part], label[part], index[part]) for part in torch.tensor(rows, dtype=torch.int64).split(size)
    ]
    if not rows:
        batches = [Batch(feature[:1], torch.tensor([-1]), torch.tensor([-1]))]
    return extract_bank({"it": nn.Identity()}, batches, quiet_trainer(), dtype)["it"]


def measured(processes: int) -> dict[str, Any]:
    """Classifies images by a bank of which each process has a share."""
    chunks.BYTES = 2000  # 41 images in float32
    rank = torch.distributed.get_rank() if processes > 1 else 0
    rows = list(SHARES[processes][rank])
    query, draws = features(60, 1), torch.arange(3 * 40).view(3, 40) * 11 % (IMAGES - len(UNLABELLED))
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.float64):
        bank = bank_of(rows, dtype)
        query = query._replace(feature=query.feature.to(dtype))
        found[f"knn {dtype}"] = knn(bank, query, CLASSES, 120).tolist()
        found[f"knn of draws {dtype}"] = knn(bank, query, CLASSES, 5, draws=draws).tolist()
        found[f"linear {dtype}"] = linear_probe(bank, query, CLASSES).tolist()
        found[f"linear of draws {dtype}"] = linear_probe(bank, query, CLASSES, draws=draws).tolist()
    found["similar"] = similar(bank, query.feature[:5], 9).index.tolist()
    found["weights"] = [each.tolist() for each in weights(bank)]
    found["held"] = (bank.devices, bank.index[bank.row].tolist())
    return found


def weights(bank: Bank) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        mean, std = standard(bank)
        return _fit(bank, mean=mean, std=std, num_classes=CLASSES, l2=1.0, max_iterations=100)


def without_images() -> list[int]:
    """The first process has all images, the second none."""
    chunks.BYTES = 2000
    bank = bank_of(list(range(IMAGES)) if torch.distributed.get_rank() == 0 else [], torch.float32)
    assert bank.devices == 2
    query = features(60, 1)
    query = query._replace(feature=query.feature.float())
    return [*knn(bank, query, CLASSES, 120).tolist(), *linear_probe(bank, query, CLASSES).tolist()]


def small() -> int:
    """The number of processes that share a bank which fits in a chunk."""
    return bank_of(list(range(torch.distributed.get_rank(), IMAGES, 2)), torch.float32).devices


def of_two_processes() -> tuple[dict[str, Any], list[int], int]:
    devices = small()
    return measured(2), without_images(), devices
