import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules import Batch
from recipes.evaluation.features import Collector, Features, extract
from recipes.nn import ConvNet


def batches(count: int, size: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(count * size).view(count, size)
    image = torch.rand(count, size, 1, 8, 8, generator=generator)
    return [Batch(image[i], index[i] % 3, index[i]) for i in range(count)]


def trainer(**options: object) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)


def test_features_are_those_of_eval_mode_and_leave_no_trace_in_the_encoder() -> None:
    encoder = ConvNet((4, 8)).train()
    frozen = encoder.network[1].eval()  # a part that its owner keeps in eval mode
    modes = [module.training for module in encoder.modules()]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    features = extract({"it": encoder}, batches(3, 5), trainer())["it"]

    assert not frozen.training
    assert [module.training for module in encoder.modules()] == modes
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        expected = encoder.eval()(torch.cat([batch.image for batch in batches(3, 5)]))
    torch.testing.assert_close(features.feature, expected)
    assert not features.feature.requires_grad
    assert features.index.tolist() == list(range(15))
    assert features.label.tolist() == [i % 3 for i in range(15)]


def test_features_come_in_the_order_of_the_dataset_and_each_once() -> None:
    first, second, third = batches(3, 5)
    mixed = [third, first, Batch(*(torch.cat([a, b]) for a, b in zip(second, first)))]
    model = nn.Flatten()
    straight, shuffled = (extract({"it": model}, data, trainer())["it"] for data in ([first, second, third], mixed))
    for a, b in zip(straight, shuffled):
        assert torch.equal(a, b)


def test_an_image_that_only_fills_a_batch_is_left_out() -> None:
    filler = Batch(torch.rand(1, 1, 8, 8), torch.tensor([-1]), torch.tensor([-1]))
    features = extract({"it": ConvNet((4, 8))}, [*batches(2, 3), filler], trainer())["it"]
    assert features.index.tolist() == list(range(6))


def test_features_of_several_loaders_stay_apart() -> None:
    collector = Collector(torch.device("cpu"))
    for loader, value in ((1, 10.0), (0, 20.0)):
        index = torch.tensor([1, 0])
        collector.add(torch.full((2, 1), value) + index[:, None], Batch(index, index, index), loader)
    features = collector.gather()
    assert features.feature.flatten().tolist() == [20, 21, 10, 11]
    assert features.index.tolist() == [0, 1, 0, 1]


def test_features_are_computed_in_the_precision_of_the_trainer_and_kept_in_float32() -> None:
    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 4)

        def forward(self, image: Tensor) -> Tensor:
            feature = self.linear(image.flatten(1))
            assert feature.dtype == torch.bfloat16
            return feature

    assert extract({"it": Spy()}, batches(1, 4), trainer(precision="bf16-mixed"))["it"].feature.dtype == torch.float32


def test_extracting_leaves_the_random_number_generators_alone() -> None:
    loader: DataLoader[Batch] = DataLoader(batches(2, 4), batch_size=None, shuffle=True)  # type: ignore[arg-type]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    extract({"it": nn.Flatten()}, loader, trainer())
    assert torch.equal(torch.get_rng_state(), state)


def test_images_without_label_or_with_several_can_be_left_out() -> None:
    collector = Collector(torch.device("cpu"))
    index = torch.arange(3)
    collector.add(torch.eye(3), Batch(index, torch.tensor([1, -1, 0]), index))
    collector.add(torch.eye(3), Batch(index, torch.zeros(3, 2, dtype=torch.int64), index + 3))
    features = collector.gather()
    assert features.label.tolist() == [1, -1, 0, -1, -1, -1]
    assert features.labelled().index.tolist() == [0, 2]
    assert isinstance(features.to("cpu"), Features)


@pytest.mark.parametrize("wrong", [None, torch.zeros(4), torch.zeros(3, 2), {"feature": torch.zeros(4, 2)}])
def test_what_is_no_row_of_features_for_each_image_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"must return the features of the batch as a tensor of shape \[4, F\]"):
        Collector(torch.device("cpu")).add(wrong, batches(1, 4)[0])  # type: ignore[arg-type]


@pytest.mark.slow
def test_importing_callbacks_imports_nothing_that_is_slow_and_rarely_used() -> None:
    code = (
        # Lightning imports torchmetrics, which imports matplotlib
        "import sys, lightning.pytorch; before = set(sys.modules); import recipes.callbacks; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before} & {'sklearn', 'matplotlib', 'wandb'}; "
        "assert not new, new"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
