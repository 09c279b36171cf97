from typing import Any

import torch
from matplotlib.colors import to_hex
from matplotlib.text import Text

from recipes.evaluation.features import Features
from recipes.plots import representation
from recipes.plots.representation import neighbours, tsne


def features(feature: torch.Tensor, label: list[int]) -> Features:
    return Features(feature, torch.tensor(label), torch.arange(len(label)) + 100)


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_neighbours_are_the_most_similar_images_framed_by_class() -> None:
    bank = features(torch.tensor([[0.0, 1.0], [9.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), [1, 1, 0, 0])
    test = features(torch.tensor([[1.0, 0.0], [0.5, 0.0]]), [0, 0])
    asked = []

    def images(index: torch.Tensor) -> torch.Tensor:
        asked.append(index.tolist())
        return torch.zeros(len(index), 3, 8, 8, dtype=torch.uint8)

    figure = neighbours(bank, test, images, images, ["cat", "dog"])
    assert asked == [[102, 101, 103, 100], [100]]  # at 0°, 6°, 45° and 90°, of the first test image of the one class
    frames = [axes.spines["left"] for axes in figure.axes]
    assert [frame.get_visible() for frame in frames] == [False, True, True, True, True]
    red, green = representation._WRONG, representation._RIGHT
    assert [to_hex(frame.get_edgecolor()) for frame in frames[1:]] == [green, red, green, red]
    assert {"cat", "cat  1.00", "dog  0.99", "cat  0.71", "dog  0.00"} <= set(texts(figure))
    assert any("50 % of the same class" in text for text in texts(figure))


def test_tsne_separates_what_is_separate_and_names_the_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.eye(3, 16).repeat_interleave(20, 0) * 10
    label = [i // 20 for i in range(60)]
    both = {"before": features(torch.randn(60, 16, generator=generator), label),
            "after": features(centre + torch.randn(60, 16, generator=generator), label)}  # fmt: skip
    figure = tsne(both, ["ant", "bee", "a very long name of a class"])
    assert {"before", "after", "ant", "bee", "a very long…"} <= set(texts(figure))
    spread = []
    for axes in figure.axes:
        groups = [torch.tensor(dots.get_offsets()).float() for dots in axes.collections]
        assert [len(group) for group in groups] == [20, 20, 20]
        within = max((group - group.mean(0)).norm(dim=1).max() for group in groups)
        between = torch.pdist(torch.stack([group.mean(0) for group in groups])).min()
        spread.append(between / within)
    assert spread[1] > 1.5 > spread[0]


def test_tsne_of_many_classes_has_no_legend() -> None:
    label = list(range(30))
    figure = tsne({"after": features(torch.randn(30, 4), label)}, [f"class {i}" for i in label])
    assert figure.legends == []
