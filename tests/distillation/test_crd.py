import math

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import nn

from datamodules import Digits
from recipes.augment import Key, integers
from recipes.base.recipe import Recipe
from recipes.distillation.crd import ContrastiveDistillation
from recipes.nn import ConvNet
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

IMAGES = 24


def draw(loss, key):
    """The training images that a batch is compared with."""
    return integers(key, loss.negatives, len(loss.student_bank))


def built(student=(5,), teacher=(7,), images=IMAGES, **options):
    torch.manual_seed(0)
    loss = ContrastiveDistillation(**{"negatives": 40, "embedding_dim": 6, "temperature": 0.5, **options})
    loss.build(student, teacher, images)
    return loss.double()


def batch_of(*index, classes=3, student=(5,), teacher=(7,), label=None):
    """What a loss is given for some images; their vectors are a function of their number."""
    index = torch.tensor(index)
    ours, theirs = (
        torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(i + add)) for i in index.tolist()])
        for shape, add in ((student, 0), (teacher, 1000))
    )
    label = index % classes if label is None else torch.tensor(label)
    return (ours.double(), theirs.double()), {"label": label, "index": index, "key": Key(3, 1, index, 1)}


def step(loss, batch):
    pair, needed = batch
    value = loss(*pair, **needed)
    loss.after_backward()
    return value


def unit(vector):
    return vector / np.linalg.norm(vector)


def embeddings(loss, pair):
    with torch.no_grad():
        rows = [layer(x).numpy() for layer, x in zip((loss.student_embedding, loss.teacher_embedding), pair)]
    return [np.stack([unit(row) for row in side]) for side in rows]


def by_hand(loss, batch, z, other_classes=True):
    """The published formula, image by image and negative by negative, with what the banks hold."""
    pair, needed = batch
    drawn = draw(loss, needed["key"]).tolist()
    index, label = needed["index"].tolist(), needed["label"].tolist()
    known = loss.student_bank.label.tolist()
    banks = [loss.teacher_bank.features.numpy(), loss.student_bank.features.numpy()]
    total = 0.0
    for i, own in enumerate(index):
        negatives = []
        for j in drawn:
            same_class = label[i] >= 0 and known[j] == label[i]
            if j != own and not (other_classes and same_class):
                negatives.append(j)
        m_pn = len(negatives) / len(known)  # m Pn
        for side, embedding in enumerate(embeddings(loss, pair)):
            p = math.exp(embedding[i] @ banks[side][own] / loss.temperature) / z[side]
            total -= math.log(p / (p + m_pn))
            for j in negatives:
                p = math.exp(embedding[i] @ banks[side][j] / loss.temperature) / z[side]
                total -= math.log(m_pn / (p + m_pn))
    return total / len(index)


@pytest.mark.parametrize("negatives_of", ["other-classes", "all"])
@pytest.mark.parametrize("label", [None, [0, -1, 2, -1]])
def test_the_loss_is_the_published_formula_at_every_step(negatives_of, label):
    loss = built(negatives_of=negatives_of)
    step(loss, batch_of(1, 5, 9, 14))
    for _ in range(2):
        batch = batch_of(4, 1, 20, 23, label=label)
        expected = by_hand(loss, batch, loss.log_z.exp().tolist(), negatives_of == "other-classes")
        assert step(loss, batch).item() == pytest.approx(expected, rel=1e-12)


def test_z_is_the_mean_over_the_first_batch_times_the_number_of_images_and_is_kept():
    loss = built()
    pair, needed = batch = batch_of(1, 5, 9, 14)
    assert loss.log_z.isneginf().all()
    drawn = draw(loss, needed["key"]).tolist()
    expected = []
    for embedding, bank in zip(embeddings(loss, pair), (loss.teacher_bank, loss.student_bank)):
        rows = bank.features.numpy()
        values = [
            math.exp(embedding[i] @ rows[j] / 0.5)
            for i, own in enumerate(needed["index"].tolist())
            for j in [own, *(j for j in drawn if j != own)]
        ]
        expected.append(math.log(IMAGES * sum(values) / len(values)))
    step(loss, batch)
    assert loss.log_z.tolist() == pytest.approx(expected, rel=1e-12)
    step(loss, batch_of(2, 3, 4, 6))
    assert loss.log_z.tolist() == pytest.approx(expected, rel=1e-12)


def test_gradients_are_those_of_numerical_differences_and_none_goes_to_the_teacher():
    loss = built(negatives=9)
    step(loss, batch_of(0, 1, 2))
    (student, teacher), needed = batch_of(3, 1, 2)
    weights = [loss.student_embedding.weight, loss.teacher_embedding.weight]
    teacher.requires_grad_()

    def value(x, *_):
        return loss(x, teacher, **needed)

    assert torch.autograd.gradcheck(value, (student.requires_grad_(), *weights))
    value(student).backward()
    assert teacher.grad is None
    assert all(weight.grad.abs().sum() > 0 for weight in weights)


def test_the_banks_move_after_the_gradient_and_only_the_rows_of_the_batch():
    loss = built(bank_momentum=0.25)
    batch = batch_of(4, 1, 20)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    value = loss(*batch[0], **batch[1])
    value.backward()
    for name, buffer in loss.state_dict().items():
        assert torch.equal(buffer, before[name]) == (name != "log_z"), name
    loss.after_backward()
    sides = zip(embeddings(loss, batch[0]), (loss.student_bank, loss.teacher_bank), ("student", "teacher"))
    for embedding, bank, name in sides:
        expected = before[f"{name}_bank.features"].numpy().copy()
        for row, i in enumerate(batch[1]["index"].tolist()):
            expected[i] = unit(0.25 * expected[i] + 0.75 * embedding[row])
        np.testing.assert_allclose(bank.features.numpy(), expected, rtol=1e-12)
    expected = [-2] * IMAGES
    for i in (4, 1, 20):
        expected[i] = i % 3
    assert loss.student_bank.label.tolist() == expected


def test_after_backward_moves_nothing_twice():
    loss = built()
    step(loss, batch_of(4, 1))
    moved = loss.student_bank.features.clone()
    loss.after_backward()
    assert torch.equal(loss.student_bank.features, moved)


def test_negatives_are_of_other_classes_once_the_classes_are_known():
    """Whatever the rows of its own class are, the loss of an image is the same; those of other classes matter."""
    loss = built(negatives=400)
    for start in range(0, IMAGES, 8):
        step(loss, batch_of(*range(start, start + 8)))
    pair, needed = batch_of(5)  # of class 2
    value = loss(*pair, **needed).item()
    random = torch.randn(IMAGES, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for matters, rows in ((False, [2, 8, 11, 23]), (True, [4]), (True, [6])):
        changed = built(negatives=400)
        changed.load_state_dict(loss.state_dict())
        for bank in (changed.student_bank, changed.teacher_bank):
            bank.features[rows] = nn.functional.normalize(random[rows])
        assert (changed(*pair, **needed).item() != pytest.approx(value, rel=1e-12)) == matters


def test_an_image_without_a_label_is_a_negative_of_all_others_and_takes_all_others():
    loss = built(negatives=400)
    for start in range(0, IMAGES, 8):
        step(loss, batch_of(*range(start, start + 8), label=[-1, 1] * 4))
    for own in (5, 4):  # with a label, and without
        pair, needed = batch_of(own, label=[1 if own == 5 else -1])
        value = loss(*pair, **needed).item()
        loss.teacher_bank.features[6].neg_()  # of an image without a label
        assert loss(*pair, **needed).item() != pytest.approx(value, rel=1e-9)


def test_an_image_whose_drawn_images_are_all_of_its_class_has_no_loss():
    loss = built()
    for start in range(0, IMAGES, 8):
        step(loss, batch_of(*range(start, start + 8), classes=1))
    (student, teacher), needed = batch_of(5, classes=1)
    value = loss(student.requires_grad_(), teacher, **needed)
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_the_order_of_the_devices_images_is_all_that_the_draw_depends_on():
    loss = built(negatives=1000)
    first, second = (draw(loss, batch_of(*index)[1]["key"]) for index in ((1, 2, 3), (4, 5, 6)))
    assert torch.equal(first, draw(loss, batch_of(1, 2, 3)[1]["key"]))
    assert not torch.equal(first, second)
    counts = torch.cat([first, second]).bincount(minlength=IMAGES)
    assert len(counts) == IMAGES
    assert (counts - 2000 / IMAGES).abs().max() < 5 * math.sqrt(2000 / IMAGES)


def test_the_two_banks_begin_with_different_vectors():
    loss = built()
    cosine = (loss.student_bank.features * loss.teacher_bank.features).sum(1)
    assert cosine.abs().max() < 0.999


@pytest.mark.parametrize(("shape", "pool"), [((5, 3, 2), (2, 3)), ((4, 5), (1,))])
def test_maps_and_tokens_are_averaged(shape, pool):
    (student, teacher), needed = batch_of(3, 8, 1, student=shape)
    loss, flat = built(student=shape), built()
    value = loss(student, teacher, **needed)
    torch.testing.assert_close(value, flat(student.mean(pool), teacher, **needed))


def test_a_built_loss_goes_on_from_a_state_dict_where_it_was():
    loss, other = built(), built()
    step(loss, batch_of(1, 5, 9, 14))
    other.load_state_dict(loss.state_dict())
    for index in ((4, 1, 20), (5, 1, 7)):
        assert step(other, batch_of(*index)).item() == step(loss, batch_of(*index)).item()
    assert loss.state_dict().keys() == other.state_dict().keys()
    for name, value in loss.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_before_it_is_built_a_loss_has_no_state():
    assert not ContrastiveDistillation().state_dict()


def test_embeddings_are_compared_in_float32_under_autocast():
    loss = built(student=(6,), teacher=(6,), negatives=500).float()
    for embedding in (loss.student_embedding, loss.teacher_embedding):
        nn.init.eye_(embedding.weight)  # what it gives is as exact in bfloat16
        nn.init.zeros_(embedding.bias)
    (student, teacher), needed = batch_of(3, 8, 1, student=(6,), teacher=(6,))
    student, teacher = student.bfloat16(), teacher.bfloat16()
    exact = loss(student, teacher, **needed)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher, **needed)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=0)


class Learning(Recipe):
    """A student of a fixed random projection, which is its teacher, by the contrastive loss alone."""

    def __init__(self):
        super().__init__(ConvNet((4, 6), norm="group"), lambda p: torch.optim.SGD(p, lr=0.1))
        self.loss = ContrastiveDistillation(negatives=50, embedding_dim=6, temperature=0.3)
        self.loss.build((6,), (64,), 1257)

    def training_step(self, batch, batch_idx):
        index = self.gather(batch.index)
        loss = self.loss(
            self.gather(self(batch.image)),
            self.gather(batch.image.flatten(1).double()),
            label=self.gather(batch.label),
            index=index,
            key=self.key(batch, view=1)._replace(index=index),
        )
        self.losses.append(loss.item())
        return loss

    def on_after_backward(self):
        self.loss.after_backward()


def fit(devices):
    seed_everything(0, verbose=False)
    recipe: LightningModule = Learning()
    recipe.losses = []
    trainer = quiet_trainer(devices=devices, precision="64-true", max_steps=5, limit_val_batches=0)
    trainer.fit(recipe, Digits(batch_size=20, size=8, num_workers=0))
    return recipe.losses, {name: value.numpy() for name, value in recipe.state_dict().items()}


def test_two_processes_learn_what_one_learns():
    ((losses, state),) = run(fit, 1)
    assert len(losses) == 5
    for found_losses, found in run(fit, 2, processes=2):
        assert found_losses == pytest.approx(losses, rel=1e-10)
        assert found.keys() == state.keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, state[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "negatives is 0"),
        ({"negatives_of": "same"}, "negatives_of is 'same'"),
        ({"embedding_dim": 0}, "embedding_dim is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"bank_momentum": 1.5}, "bank_momentum is 1.5"),
    ],
)
def test_an_argument_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveDistillation(**options)


def test_a_layer_of_another_form_is_refused():
    with pytest.raises(ValueError, match=r"a layer gives \[2, 3, 4, 5\] for an image"):
        ContrastiveDistillation().build((2, 3, 4, 5), (7,), 10)
