import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from recipes.augment import Key
from recipes.nn import ReplayBuffer
from recipes.nn.replay_buffer import herd, quotas
from tests.helpers.processes import run

TASKS = [range(20), range(20, 45), range(45, 60)]  # places in the stream
POLICIES = ["reservoir", "class-balanced", "herding"]
STREAM, CAPACITY = 60, 10


def images(index):
    """The image at each place of the stream: 2 × 3 pixels that say which place it is."""
    assert index.dtype == torch.int64
    return index[:, None, None, None].expand(-1, 1, 2, 3).to(torch.uint8).clone()


def label_of(index):
    return torch.where(index < 45, index // 15, index % 2)  # the third task has classes of the first


def feature_of(index):
    return torch.randn(STREAM, 4, generator=torch.Generator().manual_seed(3))[index]


def filled(capacity=CAPACITY, policy="reservoir", seed=0, tasks=TASKS, num_logits=0, order=None):
    buffer = ReplayBuffer(capacity, policy, num_logits)
    for task, places in enumerate(tasks):
        index = torch.tensor(places)
        if order:
            index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(order))]
        buffer.add(images, index, label_of(index), task, seed, feature_of(index))
    return buffer


def contents(buffer):
    return {name: getattr(buffer, name).numpy() for name in ("image", "label", "index", "task", "priority", "logits")}


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


# Reservoir


ROOM, PLACES, RUNS = 4, 16, 1500


def probability(samples):
    """That every place of the stream is kept as often: of counts as unlike as these, or more (chi-square test)."""
    kept, p = np.bincount(np.concatenate(samples), minlength=PLACES), ROOM / PLACES
    statistic = ((kept - RUNS * p) ** 2).sum() / (RUNS * p * (1 - p)) * (PLACES - 1) / PLACES
    return chi2.sf(statistic, PLACES - 1)


def one_by_one(seed, off):
    """A reservoir that is offered one image after the other (Vitter, 1985, Algorithm R), and may be off by one."""
    draw, kept = random.Random(seed), list(range(ROOM))
    for place in range(ROOM, PLACES):
        row = draw.randrange(place + 1 - off)
        if row < ROOM:
            kept[row] = place
    return kept


def in_tasks(seed):
    return filled(ROOM, seed=seed, tasks=[range(6), range(6, PLACES)]).index.tolist()


def test_every_place_of_the_stream_is_kept_as_often():
    assert probability([in_tasks(seed) for seed in range(RUNS)]) > 0.001
    assert probability([one_by_one(seed, 0) for seed in range(RUNS)]) > 0.001
    assert probability([one_by_one(seed, 1) for seed in range(RUNS)]) < 1e-6  # what this test is to find


def test_the_first_image_after_the_buffer_is_full_is_kept_as_often_as_others():
    p = ROOM / PLACES
    spread = math.sqrt(RUNS * p * (1 - p))
    assert abs(sum(ROOM in in_tasks(seed) for seed in range(RUNS)) - RUNS * p) < 3 * spread
    assert abs(sum(ROOM in one_by_one(seed, 1) for seed in range(RUNS)) - RUNS * p) > 3 * spread


def test_which_images_two_seeds_keep_is_independent():
    p = ROOM / PLACES
    common = [len({*in_tasks(seed)} & {*in_tasks(seed + 1)}) for seed in range(0, 400, 2)]
    variance = ROOM * p * (1 - p) * (PLACES - ROOM) / (PLACES - 1)  # of a hypergeometric distribution
    assert abs(np.mean(common) - ROOM * p) < 4 * math.sqrt(variance / len(common))


# Size and contents


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacity", [1, 7, 10, 21, 60, 100])
def test_it_holds_as_many_images_as_were_seen_or_as_fit_in(policy, capacity):
    for tasks in range(4):
        buffer = filled(capacity, policy, tasks=TASKS[:tasks])
        assert len(buffer) == min(capacity, [0, 20, 45, 60][tasks])


@pytest.mark.parametrize("policy", POLICIES)
def test_every_row_belongs_to_one_image(policy):
    buffer = filled(policy=policy)
    index = buffer.index
    assert buffer.image.dtype == torch.uint8
    assert len(index.unique()) == CAPACITY
    assert torch.equal(index, index.sort().values)
    assert torch.equal(buffer.image, images(index))
    assert torch.equal(buffer.label, label_of(index))
    assert buffer.task.tolist() == [0 if place < 20 else 1 if place < 45 else 2 for place in index.tolist()]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("smaller", [1, 4, 9])
def test_a_buffer_made_smaller_equals_one_that_was_smaller_from_the_start(policy, smaller):
    buffer = filled(policy=policy)
    buffer.resize(smaller)
    assert same(contents(buffer), contents(filled(smaller, policy)))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_order_in_which_a_task_gives_its_images_does_not_matter(policy):
    assert same(contents(filled(policy=policy, order=1)), contents(filled(policy=policy)))


def test_only_images_that_stay_are_fetched_in_parts():
    fetched = []

    def fetch(index):
        fetched.append(index)
        return images(index % 60)

    buffer = ReplayBuffer(3000)
    buffer.add(fetch, torch.arange(5000), torch.zeros(5000, dtype=torch.int64), 0, seed=0)
    assert torch.equal(torch.cat(fetched), buffer.index)
    assert max(len(part) for part in fetched) <= 1024


def test_add_tells_the_rows_of_the_new_images():
    buffer = filled(tasks=TASKS[:2])
    index = torch.tensor(TASKS[2])
    rows = buffer.add(images, index, label_of(index), 2, 0)
    assert len(rows) > 0
    assert torch.equal(rows, (buffer.index >= 45).nonzero().flatten())


def test_logits_stay_with_their_images():
    buffer = ReplayBuffer(CAPACITY, num_logits=3)
    for task, places in enumerate(TASKS):
        index = torch.tensor(places)
        rows = buffer.add(images, index, label_of(index), task, 0)
        assert (buffer.logits[rows] == 0).all()
        buffer.record(rows, buffer.index[rows, None] * torch.tensor([1.0, 10.0, 100.0]))
    assert torch.equal(buffer.logits, buffer.index[:, None] * torch.tensor([1.0, 10.0, 100.0]))


def test_the_memory_that_images_take_shows_among_the_buffers():
    taken = sum(buffer.nbytes for buffer in filled(num_logits=5).buffers())
    assert taken == CAPACITY * (1 * 2 * 3 + 4 * 8 + 5 * 4)


# Classes


def deal(counts, capacity):
    """One place after the other, in rounds over the classes that have an image left."""
    shares = [0] * len(counts)
    while sum(shares) < min(capacity, sum(counts)):
        for c, count in enumerate(counts):
            if shares[c] < count and shares[c] == min(s for s, n in zip(shares, counts, strict=True) if s < n):
                if sum(shares) == capacity:
                    break
                shares[c] += 1
    return shares


def test_room_is_dealt_to_classes_as_evenly_as_their_images_allow():
    assert quotas([50, 50, 50], 10) == [4, 3, 3]
    assert quotas([2, 50, 50], 11) == [2, 5, 4]  # what the first class does not need goes to the others
    assert quotas([], 5) == []
    draw = random.Random(0)
    for _ in range(200):
        classes = [draw.randrange(9) for _ in range(draw.randrange(1, 6))]
        capacity = draw.randrange(30)
        assert quotas(classes, capacity) == deal(classes, capacity)


@pytest.mark.parametrize("policy", ["class-balanced", "herding"])
def test_a_balanced_buffer_holds_as_many_of_each_class(policy):
    buffer = filled(policy=policy)  # 0, 1 and 2: 23, 22 and 15 images
    assert buffer.label.bincount().tolist() == [4, 3, 3]
    buffer = filled(52, policy)
    assert buffer.label.bincount().tolist() == [19, 18, 15]


def test_of_each_class_a_balanced_buffer_keeps_a_uniform_sample():
    runs = 800
    samples = [filled(policy="class-balanced", seed=seed).index.numpy() for seed in range(runs)]
    kept = np.bincount(np.concatenate(samples), minlength=STREAM)
    places = torch.arange(STREAM)
    for label, share in enumerate([4, 3, 3]):
        of_class = kept[(label_of(places) == label).numpy()]
        p = share / len(of_class)
        statistic = ((of_class - runs * p) ** 2).sum() / (runs * p * (1 - p)) * (len(of_class) - 1) / len(of_class)
        assert chi2.sf(statistic, len(of_class) - 1) > 0.001


# Herding


def herd_slowly(feature, count):
    """Algorithm 4 as it is written, each image once."""
    vectors = [[float(x) for x in row] for row in feature]
    vectors = [[x / (math.sqrt(sum(y * y for y in row)) or 1) for x in row] for row in vectors]
    dim = len(vectors[0])
    mean = [sum(row[d] for row in vectors) / len(vectors) for d in range(dim)]
    chosen, total = [], [0.0] * dim
    for k in range(1, count + 1):
        distance = {
            n: sum((mean[d] - (row[d] + total[d]) / k) ** 2 for d in range(dim))
            for n, row in enumerate(vectors)
            if n not in chosen
        }
        best = min(distance, key=distance.get)
        chosen.append(best)
        total = [total[d] + vectors[best][d] for d in range(dim)]
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_herding_is_the_slow_loop_and_its_first_images_are_those_of_fewer(seed):
    feature = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed)).relu() + 0.01
    chosen = herd(feature, 40).tolist()
    assert chosen == herd_slowly(feature, 40)
    assert herd(feature, 7).tolist() == chosen[:7]
    assert herd(feature * torch.rand(40, 1), 40).tolist() == chosen  # lengths do not matter


def test_of_equal_features_herding_takes_the_first_whatever_the_last_bits_say():
    feature = torch.randn(10, 6, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
    for seed in range(5):
        noise = 1e-7 * torch.randn(30, 6, generator=torch.Generator().manual_seed(seed))
        assert herd(feature + noise, 12).tolist() == herd(feature, 12).tolist()


def test_herding_takes_images_whose_features_are_all_zero_in_their_turn():
    feature = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    feature[5:12] = 0
    assert herd(feature, 20).tolist() == herd_slowly(feature, 20)


def test_a_herding_buffer_keeps_the_first_of_each_class_of_a_task():
    buffer = filled(policy="herding", tasks=TASKS[:2])
    places = torch.arange(45)
    for label, share in enumerate([4, 3, 3]):
        for task in range(2):
            of_both = places[(label_of(places) == label) & ((places >= 20) == (task == 1))]
            if len(of_both) == 0:
                continue
            order = of_both[herd_slowly(feature_of(of_both), len(of_both))].tolist()
            kept = buffer.index[(buffer.label == label) & (buffer.task == task)].tolist()
            assert sorted(order[: len(kept)]) == kept
        assert (buffer.label == label).sum() == share


# Draws


def test_draws_repeat_nothing_and_take_all_there_is():
    buffer = filled()
    for step in range(20):
        rows = buffer.draw(Key(0, 0, torch.empty(0)).fold_in(step), 6)
        assert len(rows.unique()) == len(rows) == 6
    assert sorted(buffer.draw(Key(0, 0, torch.empty(0)), 99).tolist()) == list(range(CAPACITY))
    assert len(ReplayBuffer(5).draw(Key(0, 0, torch.empty(0)), 4)) == 0


def test_every_image_is_drawn_as_often_in_every_place():
    buffer, steps = filled(), 4000
    drawn = torch.stack([buffer.draw(Key(0, 2, torch.empty(0)).fold_in(step), 4) for step in range(steps)])
    for place in drawn.T:
        statistic = (place.bincount(minlength=CAPACITY) - steps / CAPACITY).square().sum() / (steps / CAPACITY)
        assert chi2.sf(statistic, CAPACITY - 1) > 0.001


def test_what_is_drawn_depends_on_the_images_and_not_on_how_the_buffer_came_by_them():
    index = torch.arange(STREAM)
    at_once = ReplayBuffer(CAPACITY)
    at_once.add(images, index, label_of(index), 0, seed=0)
    key = Key(1, 2, torch.empty(0), 3)
    assert torch.equal(at_once.draw(key, 5), filled().draw(key, 5))
    others = [key._replace(seed=2), key._replace(epoch=3), key._replace(view=4), key.fold_in(0)]
    assert not any(torch.equal(at_once.draw(key, 5), at_once.draw(other, 5)) for other in others)


# Devices and checkpoints


def on_this_device():
    buffers = [filled(policy=policy, num_logits=2) for policy in POLICIES]
    return [
        contents(buffer) | {"drawn": buffer.draw(Key(0, 1, torch.empty(0)).fold_in(7), 4).numpy()} for buffer in buffers
    ]


def test_two_devices_keep_and_draw_what_one_does_that_can_ask_nobody():
    alone = on_this_device()  # in no process group
    for device in run(on_this_device, processes=2):
        assert all(same(one, other) for one, other in zip(device, alone, strict=True))


class Recipe(torch.nn.Module):
    def __init__(self, capacity=CAPACITY):
        super().__init__()
        self.buffer = ReplayBuffer(capacity, num_logits=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_checkpoint_of_weights_alone_brings_everything_back(tmp_path, dtype):
    recipe = Recipe().to(dtype)
    recipe.buffer = filled(num_logits=2).to(dtype)
    recipe.buffer.record(torch.arange(CAPACITY), torch.randn(CAPACITY, 2, dtype=dtype))
    torch.save(recipe.state_dict(), tmp_path / "state.ckpt")
    state = torch.load(tmp_path / "state.ckpt", weights_only=True)
    resumed = Recipe().to(dtype)
    resumed.load_state_dict(state)
    assert same(contents(resumed.buffer), contents(recipe.buffer))
    assert resumed.buffer.logits.dtype == dtype
    index = torch.arange(60, 90)
    for buffer in recipe.buffer, resumed.buffer:
        buffer.add(images, index, index % 2, 3, 0)
    assert same(contents(resumed.buffer), contents(recipe.buffer))
    smaller = Recipe(4)
    smaller.load_state_dict(state)
    assert smaller.buffer.index.tolist() == filled(4).index.tolist()


def test_half_precision_does_not_touch_which_images_stay():
    buffer = filled(tasks=TASKS[:2]).to(torch.bfloat16)
    index = torch.tensor(TASKS[2])
    buffer.add(images, index, label_of(index), 2, 0)
    assert buffer.index.tolist() == filled().index.tolist()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (partial(ReplayBuffer, 0), "room for 0 images: it must hold at least 1"),
        (
            partial(ReplayBuffer, 5, "random"),
            "policy is .random.: it must be one of reservoir, class-balanced, h",
        ),
        (lambda: filled().resize(-1), "room for -1 images"),
        (
            lambda: ReplayBuffer(5, "herding").add(images, torch.arange(9), torch.zeros(9).long(), 0, 0),
            "give the features too",
        ),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
