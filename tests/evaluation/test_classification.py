import pytest
import torch

from recipes.evaluation.classification import confusion, scores


def test_scores_are_those_of_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (60,), generator=generator)  # no image of the last class
    said = torch.randint(0, 4, (60,), generator=generator)
    said[said == 1] = 4  # which is said, and the second is not
    matrix = confusion(label, said, 5)
    pairs = list(zip(label.tolist(), said.tolist()))
    for i, found in enumerate(scores(matrix, list("abcde"))["classes"]):
        hits = sum(true == answer == i for true, answer in pairs)
        images, answers = sum(true == i for true, _ in pairs), sum(answer == i for _, answer in pairs)
        assert found["support"] == images
        assert found["recall"] == (pytest.approx(hits / images) if images else None)
        assert found["precision"] == (pytest.approx(hits / answers) if answers else None)
        assert found["f1"] == pytest.approx(2 * hits / (images + answers))
    assert matrix.tolist() == [[pairs.count((i, j)) for j in range(5)] for i in range(5)]
