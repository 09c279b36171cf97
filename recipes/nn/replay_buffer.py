"""Images of past tasks: the same on every device, saved and resumed."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.augment.keys import Key, permutation, uniform
from recipes.nn.replicated import Replicated

Policy = Literal["reservoir", "class-balanced", "herding"]

_PRIORITY = 1000  # the view of an image that random numbers are drawn for; no recipe has so many
_TIE = 1e-6  # features of the same image differ by less in batches of other sizes
_CHUNK = 1024  # images that are fetched at a time


class ReplayBuffer(Replicated):
    """Un-augmented images of the tasks so far, as many as fit.

    It is filled once for each task, at its end. Every image has a priority, and those with the highest stay: of all
    images (``reservoir``), or of each class, whose shares of the buffer are as equal as can be (``class-balanced``,
    ``herding``). Hence a buffer that is made smaller holds what a smaller one would have held from the start.

    The priority is a random number that belongs to the seed and to the place of the image in the stream, so that the
    images that stay are a uniform sample (sampling by random keys: Efraimidis and Spirakis, 2006; with equal weights it
    draws as reservoir sampling does), and every device keeps the same without asking the others. With ``herding`` it is
    the order in which the images bring the mean of those chosen nearest to the mean of the class (``herd``).

    Its tensors are in the checkpoint as one entry, because their sizes change in a run.

    Args:
        capacity: how many images it holds, at least 1.
        policy: which images stay.
        num_logits: how many logits it keeps with each image; 0 for none.

    Attributes:
        image: uint8 [M, C, H, W], M = min(capacity, images seen).
        label: int64 [M].
        index: int64 [M], the places of the images in the stream, ascending.
        task: int64 [M].
        priority: int64 [M], the larger the longer an image stays; integers are the same in every precision.
        logits: [M, num_logits], 0 until ``record`` is called.

    Raises:
        ValueError: if an argument is out of its range.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    task: Tensor
    priority: Tensor
    logits: Tensor

    def __init__(self, capacity: int, policy: Policy = "reservoir", num_logits: int = 0) -> None:
        super().__init__()
        if policy not in get_args(Policy):
            raise ValueError(f"policy is {policy!r}: it must be one of {', '.join(get_args(Policy))}")
        self.policy = policy
        self.capacity = _checked(capacity)
        self.register_buffer("image", torch.empty(0, 0, 0, 0, dtype=torch.uint8), persistent=False)
        for name in ("label", "index", "task", "priority"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("logits", torch.empty(0, num_logits), persistent=False)

    def __len__(self) -> int:
        return len(self.index)

    @torch.no_grad()
    def add(
        self,
        images: Callable[[Tensor], Tensor],
        index: Tensor,
        label: Tensor,
        task: int,
        seed: int,
        feature: Tensor | None = None,
    ) -> Tensor:
        """Takes the images of a task that may stay, and drops others for them.

        Args:
            images: fetches the images at places [n] of the stream, as uint8 [n, C, H, W]; only those that stay are
                asked for.
            index: int64 [N], the places of the task's images in the stream, none of which came before.
            label: int64 [N].
            task: the number of the task.
            seed: of the run; the buffer is a function of it and of the places.
            feature: [N, F], for ``herding``: of the images, the same on every device.

        Returns:
            int64 [n], the rows of this task's images.
        """
        index, label = index.to(self.index.device), label.to(self.index.device)
        index, order = index.sort()
        label = label[order]
        every = torch.cat([self.label, label])
        if self.policy != "herding":
            priority = _random(Key(seed, 0, index, _PRIORITY))
        elif feature is None:
            raise ValueError("policy is 'herding', which chooses images by their features: give the features too")
        else:
            priority = _herded(feature.to(index.device)[order], label, *self._quotas(every))
        kept = self._kept(every, torch.cat([self.priority, priority]), torch.cat([self.index, index]))
        old, new = kept[kept < len(self)], kept[kept >= len(self)] - len(self)
        fetched = [images(part).to(index.device) for part in index[new].cpu().split(_CHUNK)] if len(new) else []
        self.image = torch.cat([self.image[old], *fetched] if len(self) else fetched) if fetched else self.image[old]
        self.label = torch.cat([self.label[old], label[new]])
        self.index = torch.cat([self.index[old], index[new]])
        self.task = torch.cat([self.task[old], torch.full_like(new, task)])
        self.priority = torch.cat([self.priority[old], priority[new]])
        self.logits = torch.cat([self.logits[old], self.logits.new_zeros(len(new), self.logits.shape[1])])
        self._select(self.index.argsort())
        return (self.task == task).nonzero().flatten()

    @torch.no_grad()
    def record(self, rows: Tensor, logits: Tensor) -> None:
        """Keeps logits [n, num_logits] with the images of rows [n]."""
        self.logits[rows] = logits.to(self.logits)

    def resize(self, capacity: int) -> None:
        """Changes the capacity; a smaller buffer is what it would have been from the start.

        Raises:
            ValueError: if ``capacity`` is not positive.
        """
        self.capacity = _checked(capacity)
        self._select(self._kept(self.label, self.priority, self.index))

    def draw(self, key: Key, count: int) -> Tensor:
        """Draws rows without repetition: a function of the key and the number of images, the same on every device.

        Args:
            key: for what is drawn; its indices do not matter.
            count: how many; all rows where there are fewer.

        Returns:
            int64 [min(count, M)], in random order.
        """
        return permutation(key, len(self))[:count].to(self.index.device, non_blocking=True)

    def get_extra_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {name: getattr(self, name) for name in _CONTENTS}

    def set_extra_state(self, state: Any) -> None:
        """Takes the contents of a checkpoint; what does not fit in is dropped as by ``resize``."""
        for name in _CONTENTS:
            setattr(self, name, state[name].to(self.index.device))
        self.resize(self.capacity)

    def _select(self, rows: Tensor) -> None:
        for name in _CONTENTS:
            setattr(self, name, getattr(self, name)[rows])

    def _kept(self, label: Tensor, priority: Tensor, index: Tensor) -> Tensor:
        """Which of the images [N] stay: int64, ascending."""
        order = index.argsort()
        order = order[priority[order].argsort(descending=True, stable=True)]  # the highest first, ties by place
        if self.policy == "reservoir":
            return order[: self.capacity].sort().values
        rows = [order[label[order] == c][:quota] for c, quota in zip(*self._quotas(label), strict=True)]
        return torch.cat(rows).sort().values if rows else order

    def _quotas(self, label: Tensor) -> tuple[list[int], list[int]]:
        """The classes that images [N] have, ascending, and how many of each stay."""
        classes, counts = label.unique(return_counts=True)
        return classes.tolist(), quotas(counts.tolist(), self.capacity)


_CONTENTS = ("image", "label", "index", "task", "priority", "logits")


def quotas(counts: list[int], capacity: int) -> list[int]:
    """Divides room among classes as equally as their numbers of images allow.

    Classes with few images leave their room to the others; what cannot be divided goes to the first classes.

    Args:
        counts: of the images of each class.
        capacity: the room for all, >= 0.

    Returns:
        For each class, how many of its images stay; min(capacity, all images) together.
    """
    level = 0
    while level < max(counts, default=0) and sum(min(count, level + 1) for count in counts) <= capacity:
        level += 1
    left = capacity - sum(min(count, level) for count in counts)
    shares = []
    for count in counts:
        one_more = count > level and left > 0
        left -= one_more
        shares.append(min(count, level) + one_more)
    return shares


def herd(feature: Tensor, count: int) -> Tensor:
    """Chooses images whose mean feature is near that of all (iCaRL: Rebuffi et al., 2017, arXiv:1611.07725).

    Algorithm 4: the k-th is the image x that brings (φ(x) + Σ_{j<k} φ(p_j)) / k nearest to the mean μ, where φ are
    features of length one. As in the published code, an image is chosen once, and μ is not scaled to length one. The
    first m images are those that would have been chosen for m.

    Args:
        feature: [N, F], of one class; need not be normalised.
        count: how many, at most N.

    Returns:
        int64 [count], the images in the order in which they are chosen.
    """
    feature = F.normalize(feature.double(), dim=1)
    mean, half_square = feature.mean(0), feature.square().sum(1) / 2
    towards = torch.zeros_like(
        mean
    )  # k μ - Σ_{j<k} φ(p_j): the nearest to it has the largest φ(x)ᵀ towards - |φ(x)|²/2
    free = torch.ones(len(feature), dtype=torch.bool, device=feature.device)
    chosen = []
    for _ in range(count):
        towards = towards + mean
        score = torch.where(free, feature @ towards - half_square, -torch.inf)
        best = (score >= score.max() - _TIE).int().argmax()  # the first of those as near
        free[best] = False
        towards = towards - feature[best]
        chosen.append(best)
    return torch.stack(chosen) if chosen else torch.empty(0, dtype=torch.int64, device=feature.device)


def _herded(feature: Tensor, label: Tensor, classes: list[int], shares: list[int]) -> Tensor:
    """The priorities [N] of images: -1 for the first that is chosen of a class, -2 for the second, ..."""
    priority = torch.full_like(label, -len(label) - 1)
    for c, share in zip(classes, shares, strict=True):
        rows = (label == c).nonzero().flatten()
        chosen = rows[herd(feature[rows], min(share, len(rows)))]
        priority[chosen] = -torch.arange(1, len(chosen) + 1, device=label.device)
    return priority


def _random(key: Key) -> Tensor:
    """A random integer of 48 bits for each index of a key."""
    high, low = (uniform(key, 2) * 2**24).long().unbind(1)
    return (high << 24) + low


def _checked(capacity: int) -> int:
    if capacity < 1:
        raise ValueError(f"the buffer has room for {capacity} images: it must hold at least 1")
    return capacity
