import math

import pytest
import torch

from losses import labelled_cross_entropy
from losses.labelled import balanced_class_weight, mixed_cross_entropy
from tests.helpers.fake_cuda import fake_cuda

LABEL = torch.tensor([2, -1, 0, 1, -1, 2, -1, -1, 1, 0, 0, -1])  # of three devices: 3, 1 and 3 are labelled
LOGITS = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3


def slow(logits, label, smoothing=0.0):
    """The mean over the labelled images, one after the other."""
    terms = []
    for row, y in zip(logits.tolist(), label.tolist(), strict=True):
        if y >= 0:
            log_total = math.log(sum(math.exp(x) for x in row))
            targets = [smoothing / 3 + (1 - smoothing) * (k == y) for k in range(3)]
            terms.append(sum(t * (log_total - x) for t, x in zip(targets, row)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_is_the_mean_over_the_labelled_images(smoothing):
    loss = labelled_cross_entropy(LOGITS, LABEL, LABEL, smoothing)
    assert loss.item() == pytest.approx(slow(LOGITS, LABEL, smoothing), rel=1e-14)


def test_the_mean_over_three_devices_is_the_mean_over_their_images():
    parts = zip(LOGITS.chunk(3), LABEL.chunk(3), strict=True)
    losses = [labelled_cross_entropy(logits, label, LABEL).item() for logits, label in parts]
    assert sum(losses) / 3 == pytest.approx(slow(LOGITS, LABEL), rel=1e-14)
    assert max(losses) != pytest.approx(min(losses), rel=0.1)


def test_with_equal_logits_it_is_the_logarithm_of_the_number_of_classes():
    assert labelled_cross_entropy(torch.zeros(12, 3), LABEL, LABEL).item() == pytest.approx(math.log(3))


def test_a_device_without_a_labelled_image_gives_zero_and_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    nothing = torch.full((12,), -1)
    for everyones in (nothing, torch.cat([nothing, LABEL])):
        loss = labelled_cross_entropy(logits, nothing, everyones)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss == 0
        assert not gradient.any()


def test_logits_in_half_precision_are_taken_in_float32():
    logits = LOGITS.to(torch.bfloat16)
    loss = labelled_cross_entropy(logits, LABEL, LABEL)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow(logits.double(), LABEL), rel=1e-6)


def test_with_class_weights_it_is_the_weighted_mean_also_over_devices():
    weight = torch.tensor([0.5, 2.0, 1.3], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(LOGITS, LABEL, weight, ignore_index=-1, label_smoothing=0.1).item()
    assert labelled_cross_entropy(LOGITS, LABEL, LABEL, 0.1, weight).item() == pytest.approx(expected, rel=1e-14)
    parts = zip(LOGITS.chunk(3), LABEL.chunk(3), strict=True)
    losses = [labelled_cross_entropy(logits, label, LABEL, 0.1, weight).item() for logits, label in parts]
    assert sum(losses) / 3 == pytest.approx(expected, rel=1e-14)


def test_shares_weigh_images_without_changing_what_the_sum_is_divided_by():
    share = torch.linspace(0, 1, 12, dtype=torch.float64)
    one, other = (labelled_cross_entropy(LOGITS, LABEL, LABEL, share=s).item() for s in (share, 1 - share))
    assert one + other == pytest.approx(slow(LOGITS, LABEL), rel=1e-14)
    assert one != pytest.approx(other, rel=0.01)


def test_mixed_images_learn_both_labels_by_their_shares():
    label, partner = LABEL.clamp(min=0), LABEL.flip(0).clamp(min=0)
    share = torch.linspace(0, 1, 12, dtype=torch.float64)
    loss = mixed_cross_entropy(LOGITS, label, partner, share, label, 0.2).item()
    log_p = LOGITS.log_softmax(1)
    expected = 0.0
    for row in range(12):
        target = [0.2 / 3] * 3
        target[label[row]] += 0.8 * share[row].item()
        target[partner[row]] += 0.8 * (1 - share[row].item())
        expected -= sum(t * log_p[row, k].item() for k, t in enumerate(target)) / 12
    assert loss == pytest.approx(expected, rel=1e-13)


def test_images_that_are_not_mixed_have_their_own_label_alone():
    weight = torch.tensor([0.5, 2.0, 1.3], dtype=torch.float64)
    found = mixed_cross_entropy(LOGITS, LABEL, LABEL.flip(0), None, LABEL, 0.1, weight)
    assert torch.equal(found, labelled_cross_entropy(LOGITS, LABEL, LABEL, 0.1, weight))


def test_balanced_weights_give_every_class_the_same_total():
    label = torch.tensor([0] * 6 + [1] * 3 + [2] + [-1] * 5)
    weight = balanced_class_weight(label, 3)
    assert [weight[k].item() * count for k, count in enumerate((6, 3, 1))] == pytest.approx([10 / 3] * 3)
    assert balanced_class_weight(label, 4)[3].item() == 10 / 4  # no image: as if there were one


@pytest.mark.parametrize("weighted", [False, True])
def test_the_host_does_not_wait_for_a_gpu(weighted):
    with fake_cuda() as noted:
        logits = torch.zeros(6, 3, device="cuda", requires_grad=True)
        label = torch.zeros(6, dtype=torch.int64, device="cuda")
        weight = torch.ones(3, device="cuda") if weighted else None
        with noted() as waits:
            labelled_cross_entropy(logits, label, label, class_weight=weight)
    assert not waits
