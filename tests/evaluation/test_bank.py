from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datamodules import Batch
from recipes.evaluation import knn, linear_probe
from recipes.evaluation.bank import Bank, extract_bank, stored_types
from recipes.evaluation.representation import Pixels
from recipes.nn import ConvNet
from tests.evaluation.two_processes import CLASSES, IMAGES, SHARES, UNLABELLED, features, measured, of_two_processes
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    (found,) = run(measured, 1)
    return found


@pytest.fixture(scope="module")
def two() -> list[Any]:
    return run(of_two_processes, processes=2)


def test_two_processes_classify_by_their_shares_as_one_does_by_the_whole_bank(
    one: dict[str, Any], two: list[Any]
) -> None:
    for found, _, _ in two:
        for name in one.keys() - {"weights", "held"}:
            assert found[name] == one[name], name
        for ours, theirs in zip(found["weights"], one["weights"], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert one["held"] == (1, [row for row in range(IMAGES) if row not in UNLABELLED])


def test_each_labelled_image_is_held_by_one_process(two: list[Any]) -> None:
    held = [set(found["held"][1]) for found, _, _ in two]
    assert [found["held"][0] for found, _, _ in two] == [2, 2]
    assert held == [{*SHARES[2][0]} - {*UNLABELLED}, {*SHARES[2][1]} - {0, 9, 297} - {*UNLABELLED}]


def test_a_process_without_images_takes_part(one: dict[str, Any], two: list[Any]) -> None:
    expected = [*one["knn torch.float32"], *one["linear torch.float32"]]
    assert [found for _, found, _ in two] == [expected, expected]


def test_a_bank_that_fits_in_a_chunk_is_copied_to_every_process(two: list[Any]) -> None:
    assert [devices for *_, devices in two] == [1, 1]


class Scaled(nn.Module):
    """An encoder of uint8 images, as a recipe is."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        return self.encoder(image.float() / 255)


def test_half_precision_of_the_encoder_is_kept_and_nothing_is_lost() -> None:
    trainer = quiet_trainer(precision="bf16-mixed")
    encoders = {"half": Scaled(ConvNet((4, 8))), "full": Pixels()}
    image = torch.randint(256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    batch = Batch(image, torch.arange(40) % 2, torch.arange(40))
    types = stored_types(encoders, (1, 8, 8), trainer)
    assert types == {"half": torch.bfloat16, "full": torch.float32}
    kept = extract_bank(encoders, [batch], trainer, types)
    widened = extract_bank(encoders, [batch], trainer)
    for name, bank in kept.items():
        assert bank.feature.dtype == types[name]
        assert torch.equal(bank.feature.float(), widened[name].feature)
    query = features(20, 1)
    query = query._replace(feature=query.feature[:, :8].float())
    for measure in (knn, linear_probe):
        assert torch.equal(measure(kept["half"], query, CLASSES), measure(widened["half"], query, CLASSES))


def test_features_that_are_not_finite_are_found() -> None:
    bank = Bank.of(features(9, 0))
    assert bank.is_finite()
    for wrong in (torch.inf, -torch.inf, torch.nan):
        feature = bank.feature.clone()
        feature[3, 1] = wrong
        assert not Bank.of(features(9, 0)._replace(feature=feature)).is_finite()
