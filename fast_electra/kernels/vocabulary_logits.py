"""Vocabulary logits (..., V) in float32 that is never whole: one sample per position, and the masked LM's loss.

Positions go through in chunks of `CHUNK_MIB`: on a CPU as much as its cache holds, so that no pass over the vocabulary
waits for memory. Compiled, all go through at once and every pass reads the logits anew, so that nothing of their size
is kept. Logits may have any precision up to float32 and stay as they are.

A sample is the inverse of the cumulative softmax(logits / T) at one uniform: the first word whose cumulative weight
passes the number. That costs one pass over the vocabulary instead of a Gumbel draw for each of its words. The sum is
taken in two levels, of `TILE` words in float32 and over tiles in float64, so that only the tile that the number falls
into is summed word by word.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 128
CHUNK_MIB = {"cpu": 4}
_CHUNK_MIB = 256


def sample(logits: Tensor, temperature: float | Tensor, numbers: Tensor, never: Tensor) -> Tensor:
    """A word (...) for each position of `logits` (..., V) at `numbers` (...) in (0, 1); `never` (K,) are left out.

    A `temperature` that changes is a float64 (), of which a compiler makes one graph.
    """
    flat, numbers_flat = logits.detach().flatten(0, -2), numbers.flatten()
    words = [_inverse(flat[rows], temperature, numbers_flat[rows], never) for rows in _chunks(flat)]
    return torch.cat(words).view(numbers.shape)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over positions of -log softmax(logits (..., V)) at `targets` (...), in float32."""
    loss: Tensor = _CrossEntropy.apply(logits.flatten(0, -2), targets.flatten())  # type: ignore[no-untyped-call]
    return loss


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Slices of positions whose float32 logits (R, V) fit in a chunk; all at once where a compiler fuses the passes."""
    if torch.compiler.is_compiling():
        return iter([slice(None)])
    budget = CHUNK_MIB.get(logits.device.type, _CHUNK_MIB)
    size = max(1, int(budget * 2**20 / (4 * logits.shape[1])))
    return (slice(start, start + size) for start in range(0, len(logits), size))


def _inverse(logits: Tensor, temperature: float | Tensor, numbers: Tensor, never: Tensor) -> Tensor:
    """The words (R,) of a chunk of logits (R, V)."""
    last, beyond = logits.shape[1] - 1, -logits.shape[1] % TILE
    given = _without(logits, never)
    top = given.amax(dim=-1, keepdim=True)
    weight = _weights(given, top, temperature)
    tiles = F.pad(weight, (0, beyond)) if beyond else weight  # torch copies where nothing is to be added, too
    passed = tiles.unflatten(1, (-1, TILE)).sum(dim=-1).double().cumsum(dim=-1)  # (R, tiles)
    target = _below(numbers.unsqueeze(-1) * passed[:, -1:], passed[:, -1:])
    tile = _first_beyond(passed, target)
    before = F.pad(passed, (1, 0)).gather(1, tile)
    # The weights of that tile are made once more: to take them out of `tiles` a compiler would keep those whole.
    words = tile * TILE + torch.arange(TILE, device=logits.device)  # (R, TILE)
    near = words.clamp_max(last)
    left_out = (words.unsqueeze(-1) == never).any(dim=-1) | (words > last)
    given = logits.gather(1, near).to(torch.float32, copy=True).masked_fill_(left_out, -torch.inf)
    inside = _weights(given, top, temperature).double().cumsum(dim=-1)
    word = tile * TILE + _first_beyond(inside, _below(target - before, inside[:, -1:]))
    return word.squeeze(-1).clamp_max_(last)


def _without(logits: Tensor, never: Tensor) -> Tensor:
    """Logits (R, V) in float32, those of `never` (K,) at minus infinity whatever they are.

    Filled in place, which a CPU does a third quicker than by a mask; a compiler would have to keep what is filled so.
    """
    given = logits.to(torch.float32, copy=True)
    if torch.compiler.is_compiling():
        barred = torch.zeros(given.shape[1], dtype=torch.bool, device=given.device).index_fill_(0, never, True)
        return given.masked_fill(barred, -torch.inf)
    return given.index_fill_(1, never, -torch.inf)


def _weights(given: Tensor, top: Tensor, temperature: float | Tensor) -> Tensor:
    """exp((given - top) / T), in the place of `given` (R, n)."""
    return given.sub_(top).mul_(1 / temperature).exp_()


def _below(target: Tensor, total: Tensor) -> Tensor:
    """`target`, where rounding has brought it up to `total` the number before that: no word without weight is taken."""
    return torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))


def _first_beyond(cumulative: Tensor, target: Tensor) -> Tensor:
    """The first index (R, 1) at which `cumulative` (R, n) exceeds `target` (R, 1); of broken numbers an index too."""
    return torch.searchsorted(cumulative, target, right=True).clamp_max_(cumulative.shape[-1] - 1)


class _CrossEntropy(torch.autograd.Function):
    """Keeps the logits and the logarithm of each position's sum; the gradient is made chunk by chunk, in their type."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        """The mean loss of logits (R, V) at targets (R,)."""
        log_sums = torch.cat([logits[rows].float().logsumexp(dim=-1) for rows in _chunks(logits)])
        ctx.save_for_backward(logits, targets, log_sums)
        at_target = logits.gather(1, targets.unsqueeze(1)).squeeze(1).float()
        return (log_sums - at_target).mean()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """(softmax - one at the target) / R, times what comes from above."""
        logits, targets, log_sums = ctx.saved_tensors
        gradient, each = torch.empty_like(logits), scale / len(logits)
        for rows in _chunks(logits):
            share = logits[rows].to(torch.float32, copy=True).sub_(log_sums[rows].unsqueeze(1)).exp_()
            gradient[rows] = _less_one(share, targets[rows].unsqueeze(1)).mul_(each)
        return gradient, None


def _less_one(share: Tensor, targets: Tensor) -> Tensor:
    """`share` (R, V), at `targets` (R, 1) less one; in place, or such that a compiler need not keep it whole."""
    if torch.compiler.is_compiling():
        return share - (torch.arange(share.shape[1], device=share.device) == targets).float()
    return share.scatter_add_(1, targets, share.new_full((1, 1), -1).expand_as(targets))
