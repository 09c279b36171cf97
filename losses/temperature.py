import math


def check_temperature(temperature: float, usual: str = "0.07 to 1", name: str = "temperature") -> float:
    """Returns the temperature of a softmax.

    Args:
        temperature: the number to check.
        usual: the range that papers use, for the message: that of a softmax over similarities, unless stated.
        name: name of the argument, for the message.

    Raises:
        ValueError: if the temperature is not a positive number.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"{name} is {temperature}: it must be a positive number; papers use {usual}")
    return temperature
