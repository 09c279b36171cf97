"""Rows that devices exchange, so that each gets its share of all rows in another order."""

from typing import Any

import torch
from torch import Tensor, distributed


class Shuffle:
    """An order of the rows of all devices, of which each device gets its share: as many as it has.

    Every row is sent once, to the one device that gets it, so that a device receives no more than its share.

    Args:
        order: int64 [devices × B], the same on every device: the rows of all devices, device after device, in the order
            in which they are dealt out.
        devices: number of devices; each has B rows.
        rank: number of this device.
    """

    def __init__(self, order: Tensor, devices: int, rank: int) -> None:
        self.order = order
        self.mine = order.chunk(devices)[rank]  # [B], which of all rows this device gets
        self.devices = devices
        if devices > 1:
            own = len(order) // devices
            place = order.argsort().chunk(devices)[rank]  # [B], where this device's rows come
            self._sent = place.argsort()  # by the device that gets them, and there in its order
            self._received = (self.mine // own).argsort(stable=True)  # by the device that they are from
            each = torch.arange(devices, device=order.device)[:, None]
            counts = [(rows // own == each).sum(1) for rows in (self.mine, place)]
            self._counts = _OnTheWay(torch.stack(counts))

    def __call__(self, x: Tensor) -> Tensor:
        """Exchanges rows.

        Args:
            x: this device's rows [B, ...], without gradient.

        Returns:
            The rows [B, ...] that this device gets.
        """
        if self.devices == 1:
            return x[self.order]
        received, sent = self._counts.tolist()
        given = torch.empty_like(x)
        distributed.all_to_all_single(given, x[self._sent], received, sent)
        return torch.empty_like(given).index_copy_(0, self._received, given)


class _OnTheWay:
    """Numbers that are copied to the host meanwhile: once they are read, the host waits for no later work of a GPU."""

    def __init__(self, numbers: Tensor) -> None:
        self._copy = numbers.to("cpu", non_blocking=True)
        self._event: Any = None
        if numbers.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def tolist(self) -> list[Any]:
        if self._event is not None:
            self._event.synchronize()
        return self._copy.tolist()
