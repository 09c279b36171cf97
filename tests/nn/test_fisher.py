import copy

import pytest
import torch
from torch import nn

from recipes.nn import MLP, ConvNet, MultiHead, ResNet, ViT, diagonal_fisher

CLASSES = torch.tensor([1, 3, 4])
NETWORKS = {
    "mlp": (lambda: MLP(4, hidden=(6, 5), batch_norm=False), (1, 4, 4)),
    "mlp with batch norm": (lambda: MLP(4, hidden=(6, 5)), (1, 4, 4)),
    "convnet": (lambda: ConvNet((4, 6)), (1, 8, 8)),
    "resnet": (lambda: ResNet(8, 3, 1), (1, 8, 8)),
    "vit": (lambda: ViT(8, 4, dim=6, depth=2, heads=2, in_channels=1), (1, 8, 8)),
}


def network_and_images(name, images=5):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    encoder = make()
    network = nn.Sequential(encoder, MultiHead(encoder.feature_dim, (2, 3))).double()
    with torch.no_grad():  # a network in the middle of training
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network, torch.randn(images, *shape, dtype=torch.float64)


def by_a_loop(network, image, classes):
    """One image and one class at a time, each by a backward pass of its own."""
    network = copy.deepcopy(network).eval()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    fisher = [torch.zeros_like(parameter) for parameter in parameters]
    for x in image:
        logits = network(x[None])[0, classes]
        p = (logits.exp() / logits.exp().sum()).detach()
        for number in range(len(classes)):
            log_p = logits[number] - logits.exp().sum().log()
            gradients = torch.autograd.grad(log_p, parameters, retain_graph=True, materialize_grads=True)
            for total, gradient in zip(fisher, gradients):
                total += p[number] * gradient**2 / len(image)
    return fisher


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_that_of_a_loop_over_images_and_classes_whatever_the_chunks(name):
    network, image = network_and_images(name)
    expected = by_a_loop(network, image, CLASSES)
    assert sum(f.sum() for f in expected) > 0.01
    for chunk_size in (1, 2, 5, 32):
        assert_equal(diagonal_fisher(network, image, CLASSES, chunk_size), expected)


def test_two_classes_and_one_weight_have_p_times_one_minus_p_times_x_squared():
    network = nn.Linear(1, 2, bias=False).double()
    x = torch.tensor([[0.3], [-2.0], [1.1]], dtype=torch.float64)
    p = torch.sigmoid((network.weight[0] - network.weight[1]) * x[:, 0]).detach()
    expected = (p * (1 - p) * x[:, 0] ** 2).mean()  # Σ_c p_c (1[c] - p)² = p (1 - p)² + (1 - p) p²
    (fisher,) = diagonal_fisher(network, x, torch.tensor([True, True]))
    torch.testing.assert_close(fisher, expected.expand(2, 1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["mlp with batch norm", "resnet"])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_changed(name, training):
    network, image = network_and_images(name)
    network.train(training)
    network[0].network[1].eval()  # a part may be in another mode
    network(image).sum().backward()
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    modes = [module.training for module in network.modules()]
    requires_grad = [parameter.requires_grad for parameter in network.parameters()]
    random = torch.get_rng_state()
    with torch.no_grad():
        diagonal_fisher(network, image, CLASSES)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(state[key], tensor) for key, tensor in network.state_dict().items())
    assert all(torch.equal(one, p.grad) for one, p in zip(gradients, network.parameters()))
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == requires_grad
    assert not any(module._forward_hooks for module in network.modules())


def test_heads_of_other_classes_matter_nothing():
    network, image = network_and_images("mlp")
    fisher = diagonal_fisher(network, image, torch.tensor([False, False, True, True, True]))
    by_name = dict(zip(dict(network.named_parameters()), fisher))
    assert not by_name["1.heads.0.weight"].any()
    assert not by_name["1.heads.0.bias"].any()
    assert by_name["1.heads.1.weight"].any()


def test_frozen_parameters_are_left_out():
    network, image = network_and_images("convnet")
    network[0].network[0].weight.requires_grad_(False)
    network[1].heads[0].weight.requires_grad_(False)
    assert_equal(diagonal_fisher(network, image, CLASSES), by_a_loop(network, image, CLASSES))


class Odd(nn.Module):
    """Linear layers that are not what they seem: called twice, given rows that are no images, with a shared weight."""

    def __init__(self):
        super().__init__()
        self.twice, self.rows, self.shared, self.other = (nn.Linear(4, 4) for _ in range(4))
        self.other.weight = self.shared.weight
        self.unused, self.constant = nn.Linear(2, 2), nn.Linear(3, 4)
        self.out = nn.Linear(4, 5)

    def forward(self, x):
        x = x.flatten(1)
        x = self.twice(torch.tanh(self.twice(x)))
        rows = self.rows(torch.stack([x, -x.square()], 1).flatten(0, 1)).unflatten(0, (len(x), 2)).sum(1)
        x = torch.tanh(x + rows + self.constant(torch.eye(3).to(x)).sum(0))
        return self.out(self.other(torch.tanh(self.shared(x))))


def test_linear_layers_that_are_used_in_unusual_ways_are_right_too():
    torch.manual_seed(0)
    network, image = Odd().double(), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    for chunk_size in (1, 3):
        assert_equal(diagonal_fisher(network, image, CLASSES, chunk_size), by_a_loop(network, image, CLASSES))


def test_few_gradients_are_in_memory_where_they_are_large(monkeypatch):
    network, image = network_and_images("convnet")
    whole = diagonal_fisher(network, image, CLASSES)
    monkeypatch.setattr("recipes.nn.fisher._NUMBERS", 1)
    assert_equal(diagonal_fisher(network, image, CLASSES), whole)


def test_it_is_in_float32_whatever_the_precision():
    network, image = network_and_images("convnet")
    network, image = network.float(), image.float()
    expected = diagonal_fisher(network, image, CLASSES)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = diagonal_fisher(network, image, CLASSES)
    assert all(torch.equal(one, other) for one, other in zip(expected, under_autocast))
    half = diagonal_fisher(network.bfloat16(), image.bfloat16(), CLASSES)
    for one, other in zip(expected, half):
        assert other.dtype == torch.float32
        assert (one - other).norm() < 0.1 * one.norm()


def test_no_image_or_no_class_is_an_error():
    network, image = network_and_images("mlp")
    with pytest.raises(ValueError, match="Fisher information of 0 images and 3 classes: give at least one of each"):
        diagonal_fisher(network, image[:0], CLASSES)
    with pytest.raises(ValueError, match="of 5 images and 0 classes"):
        diagonal_fisher(network, image, torch.zeros(5, dtype=torch.bool))
