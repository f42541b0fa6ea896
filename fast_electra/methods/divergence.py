"""Numbers gone wrong: what a broken loss does to its update, losses above a running mean, a loss at its floor.

An update whose gradients are not finite is left out, on all processes, before it touches a weight or a moment
(broken_updates.py). `broken_throughout` brings a broken loss into that form, so that neither is ever trained on and
nothing more is asked. Spikes and the floor are looked at when a row is logged.
"""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

WARM_UP, WINDOW = 50, 200
FLOOR_MARGIN = 0.01


class DivergedError(ValueError):
    """The numbers of a run have gone wrong; raised on all processes at the same step."""


def broken_throughout(loss: Tensor) -> Tensor:
    """The same loss, to the bit; one that is not finite breaks the gradients, which an infinite one may not."""
    return loss * (1 + 0 * loss.detach())


class Spikes:
    """Which losses stand more than `deviations` standard deviations above their running mean; 0 for none.

    Mean and variance weigh the last WINDOW values or so (West, CACM 22(9), 1979, with the weight of a value held at
    1 / WINDOW). Nothing is called a spike before WARM_UP values; a spike counts as if it were just at the limit, so
    that one does not hide the next, and a loss that stays high is taken for the new mean in time.
    """

    def __init__(self, deviations: float) -> None:
        self.deviations, self.seen, self.mean, self.variance = deviations, 0, 0.0, 0.0

    @property
    def limit(self) -> float:
        """What a loss must not exceed."""
        if not self.deviations or self.seen < WARM_UP:
            return math.inf
        return self.mean + self.deviations * math.sqrt(self.variance)

    def add(self, loss: float) -> None:
        """Take a loss into account."""
        loss = min(loss, self.limit)
        self.seen += 1
        weight, difference = max(1 / self.seen, 1 / WINDOW), loss - self.mean
        self.mean += weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference**2)


def is_below_floor(report: dict[str, Any]) -> bool:
    """Whether the loss of a logged row is lower than its majority-class floor by FLOOR_MARGIN or more.

    True for an objective that has no such floor.
    """
    loss, floor = report.get("loss"), report.get("floor")
    return floor is None or (loss is not None and loss < (1 - FLOOR_MARGIN) * floor)


def last_below_floor(rows: Iterable[dict[str, Any]]) -> int:
    """The last step among logged rows at which the loss was below its floor; 0 when it never was."""
    return max((row["step"] for row in rows if "loss" in row and is_below_floor(row)), default=0)
