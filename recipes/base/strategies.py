"""Which strategies of the Trainer recipes can be trained with."""

from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
    XLAStrategy,
)


def strategy_names() -> list[str]:
    """The names of strategies that recipes can be trained with, as ``Trainer(strategy=...)`` takes them."""
    return ["auto", *(name for name in StrategyRegistry.available_strategies() if _is_whole(_registered(name)))]


def check_strategy(strategy: str | type[Strategy], option: str = "strategy") -> None:
    """Refuses a strategy that gives a device only a part of the weights, or weights of its own.

    Args:
        strategy: class of the strategy, or its name. Names that Lightning does not know pass.
        option: name of the option, for the message.

    Raises:
        ValueError: if the strategy is no kind of DDP, and not that of a single device.
    """
    kind = _registered(strategy) if isinstance(strategy, str) else strategy
    if not _is_whole(kind):
        raise ValueError(
            f"{option} is {strategy if isinstance(strategy, str) else kind.__name__}: it must be ddp or another kind "
            "of DDP, because recipes need all weights on every device (momentum copies, LARS, batch norm across "
            "devices). To use less memory, set precision to bf16-true, a smaller batch_size, or micro_batch_size if "
            "the recipe has it"
        )


def _registered(name: str) -> type[Strategy]:
    known: type[Strategy] = StrategyRegistry[name]["strategy"] if name in StrategyRegistry else DDPStrategy
    return known


def _is_whole(kind: type[Strategy]) -> bool:
    whole = SingleDeviceStrategy, DDPStrategy, XLAStrategy
    return issubclass(kind, whole) and not issubclass(kind, DeepSpeedStrategy)  # a DDPStrategy to Lightning
