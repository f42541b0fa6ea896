"""Replacement paths: what a masked position becomes at every temperature, computed once and replayed for ever.

With a position's Gumbel noise g fixed, its sample at temperature T is `argmax_v l_v + T g_v`, l the auxiliary model's
logits (see gumbel.py). Each word is a straight line in T, so that the samples over [T_min, T_max] are the upper
envelope of lines: a short list of (level from which on, token), from which *any* temperature schedule is replayed.

Temperatures live on a grid of at most 65,536 levels, multiples of a power of two, exact in floating point (over [1, 4]
the step is 2^-14). The path is defined *at* the levels, in float64, the lowest token winning a tie; a T between two
levels is first snapped to the nearer one (`TemperatureGrid.level`). So what is stored is not rounded at all, and
replay at a snapped T is the argmax at that T, exactly.

Few words can win anywhere: the 128 with the largest noises, and those whose logit is so high that they beat them at
T_min with less noise. On two CPU threads all this takes 5 % of the time of the auxiliary's forward pass (4 layers x
768, 512 tokens, LM head with 32,000 words at 77 positions a row, bf16); one sample with full rows of noise takes 33 %.

Shapes: P positions, V words of the vocabulary, L lines (candidate words of all positions, flat), E entries.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fast_electra.replacements.gumbel import ARRIVALS, NoiseKeys, draw_arrivals, noise_state, tail_noise

_NO_TOKEN = 2**62


class TemperatureGrid(NamedTuple):
    """The temperatures a path knows: (first + level) * 2^-exponent for level = 0 .. num_levels - 1."""

    first: int
    last: int
    exponent: int

    @classmethod
    def covering(cls, t_min: float, t_max: float, max_levels: int = 2**16) -> "TemperatureGrid":
        """The finest grid of at most `max_levels` levels that covers [t_min, t_max].

        Raises ValueError for a range that is empty, not positive, or too wide for the number of levels.
        """
        if not 0 < t_min <= t_max < math.inf:
            raise ValueError(f"temperatures from {t_min} to {t_max}: give 0 < T_min <= T_max")
        if not 2 <= max_levels <= 2**16:
            raise ValueError(f"{max_levels} temperature levels: give between 2 and {2**16}, they are stored in 16 bits")
        exponent = 20
        while math.ceil(t_max * 2.0**exponent) - math.floor(t_min * 2.0**exponent) >= max_levels:
            exponent -= 1
        grid = cls(math.floor(t_min * 2.0**exponent), math.ceil(t_max * 2.0**exponent), exponent)
        if grid.first < 1:
            raise ValueError(
                f"temperatures from {t_min} to {t_max} do not fit {max_levels} levels: the step would be "
                f"{2.0**-exponent}; raise T_min, lower T_max or allow more levels"
            )
        return grid

    @property
    def num_levels(self) -> int:
        return self.last - self.first + 1

    @property
    def t_min(self) -> float:
        return self.first * 2.0**-self.exponent

    @property
    def t_max(self) -> float:
        return self.last * 2.0**-self.exponent

    def temperature(self, level: int) -> float:
        return (self.first + level) * 2.0**-self.exponent

    def level(self, temperature: float) -> int:
        """The level nearest to a temperature; ValueError for one that is not within [t_min, t_max]."""
        if not self.t_min <= temperature <= self.t_max:
            raise ValueError(
                f"temperature {temperature} lies outside [{self.t_min}, {self.t_max}], which the replacement paths "
                "cover: change the schedule, or precompute paths with a wider range"
            )
        return round(temperature * 2.0**self.exponent) - self.first


class Paths(NamedTuple):
    """The paths of P positions, E entries in all, on the CPU or the device that computed them (int64).

    `counts` (P,) entries of a position; then (E,), position after position: `levels`, from which an entry is the
    winner (0 for the first), `tokens`, and `ranks`, the token's place among the arrivals or -1 if it is none of them.
    """

    counts: Tensor
    levels: Tensor
    tokens: Tensor
    ranks: Tensor


class _Lines(NamedTuple):
    """Candidate lines: flat (L,) with their positions, or padded (P, width) with logit -inf."""

    tokens: Tensor
    ranks: Tensor
    logits: Tensor
    noise: Tensor

    def pick(self, index: Tensor) -> "_Lines":
        return _Lines(*(field[index] for field in self))

    def column(self, index: Tensor) -> "_Lines":
        return _Lines(*(field.gather(1, index) for field in self))

    def at(self, temperature: float | Tensor) -> Tensor:
        return self.logits + temperature * self.noise


def replacement_paths(logits: Tensor, keys: NoiseKeys, grid: TemperatureGrid) -> Paths:
    """Paths of P positions from their logits (P, V), of any float type, with the noise drawn where it can matter.

    Equal, entry by entry, to `upper_envelope(logits, gumbel_noise(keys, V), grid)`. A word of logit -inf never wins.
    Raises ValueError where a row has no finite winner (a row of NaN or -inf, an infinite logit).
    """
    state = noise_state(keys, logits.device)
    tokens, times = draw_arrivals(state, logits.shape[1])
    noise = -times.log().float().double()
    drawn = logits.gather(1, tokens).double()
    # Every arrival is at least as steep as any word that is none, which therefore wins nowhere if not at T_min.
    bar = (drawn + grid.t_min * noise).amax(1) - grid.t_min * noise[:, -1]
    # Compared in the logits' own type: a copy in another would cost more than all the rest. Rounding to the type they
    # are in moves the bar past none of them; what is taken off covers the rounding of the sums above.
    bar = (bar - 1e-9 * (1 + bar.abs())).to(logits.dtype)
    rows, high = (logits >= bar[:, None]).nonzero(as_tuple=True)
    high_noise = tail_noise(state[rows], times[rows, -1], high)
    # A high word that is an arrival appears twice; its second line is the lower one everywhere and wins nothing.
    arrival_ranks = torch.arange(ARRIVALS, device=logits.device).expand_as(tokens)
    lines = _Lines(
        torch.cat([tokens.flatten(), high]),
        torch.cat([arrival_ranks.flatten(), torch.full_like(high, -1)]),
        torch.cat([drawn.flatten(), logits[rows, high].double()]),
        torch.cat([noise.flatten(), high_noise.double()]),
    )
    positions = torch.arange(len(logits), device=logits.device)
    return _envelope(torch.cat([positions.repeat_interleave(ARRIVALS), rows]), lines, len(logits), grid)


def paths_in_chunks(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    vocab_size: int,
    keys: NoiseKeys,
    grid: TemperatureGrid,
    mib: float,
) -> Paths:
    """Paths of P positions from hidden states (P, H), the logits of `mib` MiB of float32 at a time from `head`."""
    chunk = positions_per_chunk(vocab_size, mib)
    parts = [
        replacement_paths(
            head(hidden[i : i + chunk]),
            NoiseKeys(keys.seed, keys.row_keys[i : i + chunk], keys.slots[i : i + chunk]),
            grid,
        )
        for i in range(0, len(hidden), chunk)
    ]
    return Paths(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def positions_per_chunk(vocab_size: int, mib: float) -> int:
    """How many positions' logits fit `mib` MiB in float32; ValueError where not even one does."""
    positions = int(mib * 2**20 // (4 * vocab_size))
    if positions < 1:
        raise ValueError(
            f"{mib} MiB do not hold the {vocab_size} logits of one position: give at least "
            f"{math.ceil(vocab_size / 2**8) / 2**10}"
        )
    return positions


def upper_envelope(logits: Tensor, noise: Tensor, grid: TemperatureGrid) -> Paths:
    """Paths from logits (P, V) and any noise (P, V), every word a candidate: the reference, and for other noises."""
    num_positions, vocab_size = logits.shape
    tokens = torch.arange(vocab_size, device=logits.device).repeat(num_positions)
    positions = torch.arange(num_positions, device=logits.device).repeat_interleave(vocab_size)
    lines = _Lines(tokens, torch.full_like(tokens, -1), logits.flatten().double(), noise.flatten().double())
    return _envelope(positions, lines, num_positions, grid)


def sample(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """`argmax_v logits + T noise` (P,) of (P, V) each, in float64, lowest token first: what a path replays at T."""
    values = logits.double() + temperature * noise.double()
    tokens = torch.arange(values.shape[1], device=values.device).expand_as(values)
    return tokens.where(values == values.amax(1, keepdim=True), _NO_TOKEN).amin(1)


def tokens_at(paths: Paths, level: int) -> Tensor:
    """The tokens (P,) of paths at one level of the grid."""
    owner = torch.arange(len(paths.counts), device=paths.counts.device).repeat_interleave(paths.counts)
    passed = torch.bincount(owner[paths.levels <= level], minlength=len(paths.counts))
    return paths.tokens[paths.counts.cumsum(0) - paths.counts + passed - 1]


def _envelope(positions: Tensor, lines: _Lines, num_positions: int, grid: TemperatureGrid) -> Paths:
    keep = _may_win(positions, lines, num_positions, grid)
    return _walk(_pad(positions[keep], lines.pick(keep), num_positions), grid)


def _may_win(positions: Tensor, lines: _Lines, num_positions: int, grid: TemperatureGrid) -> Tensor:
    """Which lines (L,) can be on the envelope, exactly but for rounding: those that reach the V of the two end winners.

    The winners at T_min and T_max meet at one T in between, where their maximum is lowest; a line that is below both
    ends and below that point is below the V everywhere.
    """

    def largest(values: Tensor) -> Tensor:
        start = torch.full((num_positions,), -torch.inf, dtype=values.dtype, device=values.device)
        return start.scatter_reduce(0, positions, values, "amax")

    at_min, at_max = lines.at(grid.t_min), lines.at(grid.t_max)
    best_min, best_max = largest(at_min), largest(at_max)
    if not (best_min.isfinite() & best_max.isfinite()).all():
        bad = int((~(best_min.isfinite() & best_max.isfinite())).nonzero()[0, 0])
        raise ValueError(
            f"the logits of position {bad} have no finite winner (NaN, +inf, or all -inf): check the auxiliary model"
        )
    wins_min, wins_max = at_min == best_min[positions], at_max == best_max[positions]
    slope_min = largest(lines.noise.where(wins_min, -torch.inf))
    slope_max = -largest((-lines.noise).where(wins_max, -torch.inf))
    meet = (best_min - grid.t_min * slope_min) - (best_max - grid.t_max * slope_max)
    meet = (meet / (slope_max - slope_min)).nan_to_num(grid.t_min).clamp(grid.t_min, grid.t_max)
    floor = best_min + (meet - grid.t_min) * slope_min
    floor -= 1e-9 * (1 + best_min.abs() + best_max.abs())
    return wins_min | wins_max | (lines.at(meet[positions]) >= floor[positions])


def _pad(positions: Tensor, lines: _Lines, num_positions: int) -> _Lines:
    """Flat lines (L,) as (P, width), the rest of each row a line that never wins."""
    order = positions.argsort(stable=True)
    positions, lines = positions[order], lines.pick(order)
    counts = positions.bincount(minlength=num_positions)
    column = torch.arange(len(positions), device=positions.device) - (counts.cumsum(0) - counts)[positions]
    padded = []
    for field, filler in zip(lines, (_NO_TOKEN, -1, -torch.inf, 0.0), strict=True):
        table = torch.full((num_positions, int(counts.max())), filler, dtype=field.dtype, device=field.device)
        table[positions, column] = field
        padded.append(table)
    return _Lines(*padded)


def _walk(lines: _Lines, grid: TemperatureGrid) -> Paths:
    """From level 0 upwards, all positions at once: the winner, the next level where it is beaten, and so on."""
    rows = torch.arange(len(lines.tokens), device=lines.tokens.device)
    levels = torch.zeros_like(rows)
    entries = []
    while len(rows):
        values = lines.at((grid.first + levels[:, None]) * 2.0**-grid.exponent)
        tied = lines.tokens.where(values == values.amax(1, keepdim=True), _NO_TOKEN)
        winner = lines.column(tied.argmin(1, keepdim=True))
        entries.append((rows, levels, winner.tokens[:, 0], winner.ranks[:, 0]))
        levels = _next_level(lines, winner, levels, grid)
        open_rows = levels < grid.num_levels
        rows, levels, lines = rows[open_rows], levels[open_rows], lines.pick(open_rows)
    owner, starts, tokens, ranks = (torch.cat(column) for column in zip(*entries, strict=True))
    order = owner.argsort(stable=True)
    return Paths(owner.bincount(), starts[order], tokens[order], ranks[order])


def _next_level(lines: _Lines, winner: _Lines, levels: Tensor, grid: TemperatureGrid) -> Tensor:
    """The first level (P,) above `levels` at which some line beats the winner; at least num_levels if none does."""

    def beats(level: Tensor) -> Tensor:
        temperature = (grid.first + level) * 2.0**-grid.exponent
        mine, best = lines.at(temperature), winner.at(temperature)
        return (mine > best) | ((mine == best) & (lines.tokens < winner.tokens))

    steeper = lines.noise > winner.noise
    crossing = (winner.logits - lines.logits) / (lines.noise - winner.noise) * 2.0**grid.exponent - grid.first
    guess = crossing.where(steeper, torch.inf).ceil().clamp(max=grid.num_levels).long()
    guess = torch.maximum(guess, levels[:, None] + 1)
    # The quotient is rounded and says nothing of ties: the values themselves decide between it and its neighbours.
    before = (guess - 1 > levels[:, None]) & beats(guess - 1)
    exact = torch.where(before, guess - 1, torch.where(beats(guess), guess, guess + 1))
    return exact.where(steeper, grid.num_levels).amin(1)
