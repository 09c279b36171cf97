"""Lets recipes be pickled whose optimiser or schedule is a default: defaults are lambdas, which pickle refuses."""

import inspect
from dataclasses import dataclass
from types import FunctionType
from typing import Any


@dataclass(frozen=True)
class Default:
    """Stands in a pickle for a function that is the default of an argument.

    Args:
        owner: class whose ``__init__`` has the argument.
        argument: name of the argument.
    """

    owner: type
    argument: str

    @property
    def value(self) -> Any:
        """The function."""
        return inspect.signature(self.owner.__init__).parameters[self.argument].default  # type: ignore[misc]


def named_defaults(kind: type, state: dict[str, Any]) -> dict[str, Any]:
    """Replaces functions among the attributes of an object of a class that are defaults of it or of its bases."""
    found = {
        parameter.default: Default(owner, name)
        for owner in kind.__mro__
        if "__init__" in vars(owner)
        for name, parameter in inspect.signature(owner.__init__).parameters.items()  # type: ignore[misc]
        if isinstance(parameter.default, FunctionType)
    }
    return {
        name: found.get(value, value) if isinstance(value, FunctionType) else value for name, value in state.items()
    }


def with_defaults(state: dict[str, Any]) -> dict[str, Any]:
    """Puts the functions back."""
    return {name: value.value if isinstance(value, Default) else value for name, value in state.items()}
