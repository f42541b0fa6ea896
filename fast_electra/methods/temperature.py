"""The temperature of the auxiliary model's samples as a pure function of u, the fraction of updates done.

A frozen auxiliary model at T = 1 is too good at the start; sampling from softmax(logits / T) with T descending gives
the curriculum that joint training gave for free (Dong et al., Fast-ELECTRA, ICLR 2024). The paper's schedule is
exponential, T(u) = 1 + (T_0 - 1) exp(-u / tau), which does not quite reach 1; the others end exactly at `final`.
"""

import math

from fast_electra.settings.config import TemperatureConfig


def temperature(config: TemperatureConfig, u: float) -> float:
    """T at u in [0, 1]. Raises ValueError outside."""
    if not 0 <= u <= 1:
        raise ValueError(f"u = {u}: the fraction of updates done lies between 0 and 1")
    return config.final + (config.initial - config.final) * remaining(config, u)


def remaining(config: TemperatureConfig, u: float) -> float:
    """How much of the way from the initial to the final temperature is still ahead, from 1 at u = 0."""
    match config.schedule:
        case "exponential":
            return math.exp(-u / config.tau)
        case "linear":
            return 1 - u
        case "polynomial":
            return (1 - u) ** config.power
        case "cosine":
            return (1 + math.cos(math.pi * u)) / 2
        case _:
            return 1.0
