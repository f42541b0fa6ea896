"""Method against rival, in simulation and by the clock: memory saved, speed gained beside what FLOPs promise.

A ratio is taken only within a group: same recipe, row length, vocabulary and micro-batch, and for the clock the same
device, processes, ZeRO stage and run of the program.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks import rows
from benchmarks.cases import METHODS, RIVALS
from benchmarks.costs import CLAIMS
from benchmarks.rows import Row

AGREEMENT = 0.15  # how far a measured ratio may lie from the ratio of FLOPs before the report explains it
_CASE = ("recipe", "sequence_length", "vocab_size", "head", "micro_batch_rows", "activation_checkpointing")
_HOW = ("zero_stage", "dtype", "compiled", "micro_batches")
_MACHINE = ("device", "num_processes", "threads", *_HOW, "hardware", "contest")

MEMORY_FORMULA = "1 - peak(method) / peak(rival), simulated, same micro-batch"
SPEED_FORMULA = (
    "tokens/s(method) / tokens/s(rival), medians of n turns in one run; expected: FLOPs(rival) / FLOPs(method); "
    "difference: measured / expected - 1; rate: FLOPs / seconds of inputs, forward and backward together"
)


def groups(found: Sequence[Row], kind: str) -> list[tuple[Row, list[Row]]]:
    """Rows of a kind that may be compared: the fields they share, and the rows."""
    names = _CASE if kind == "memory" else (*_CASE, *_MACHINE)
    collected: list[tuple[Row, list[Row]]] = []
    for row in rows.select(found, kind):
        shared = {name: row.get(name) for name in names}
        for known, members in collected:
            if known == shared:
                members.append(row)
                break
        else:
            collected.append((shared, [row]))
    return collected


def memory_savings(found: Sequence[Row]) -> list[Row]:
    """The share of the simulated peak that each method saves against each rival simulated."""
    made = []
    for shared, members in groups(found, "memory"):
        for method, rival in _pairs(members):
            ours, theirs = (rows.the(members, "memory", objective=name) for name in (method, rival))
            claim = CLAIMS.get(("memory", method))
            made.append(
                {
                    "kind": "memory_saving",
                    **shared,
                    "method": method,
                    "rival": rival,
                    "saving": 1 - ours["peak_memory_gib"] / theirs["peak_memory_gib"],
                    "gib_by_kind": {
                        kind: (theirs["peak_bytes"][kind] - size) / 2**30 for kind, size in ours["peak_bytes"].items()
                    },
                    "claim": list(claim) if claim else None,
                    "n": 1,
                    "formula": MEMORY_FORMULA,
                    "code": ours["code"],
                    "commit": ours["commit"],
                }
            )
    return made


def speeds(found: Sequence[Row]) -> list[Row]:
    """How much faster each method was than each rival measured beside it, next to the ratio of their FLOPs."""
    made = []
    for shared, members in groups(found, "throughput"):
        for method, rival in _pairs(members):
            ours, theirs = (rows.the(members, "throughput", objective=name) for name in (method, rival))
            ratio = ours["tokens_per_second"] / theirs["tokens_per_second"]
            expected = theirs["flops_per_token"] / ours["flops_per_token"]
            made.append(
                {
                    "kind": "speed",
                    **shared,
                    "method": method,
                    "rival": rival,
                    "ratio": ratio,
                    "ratio_low": ours["tokens_per_second_low"] / theirs["tokens_per_second_high"],
                    "ratio_high": ours["tokens_per_second_high"] / theirs["tokens_per_second_low"],
                    "flops_ratio": expected,
                    "difference": ratio / expected - 1,
                    "agrees": abs(ratio / expected - 1) <= AGREEMENT,
                    "update_seconds": _both("update", ours, theirs),
                    "rate_tflops": [_rate(row) / 1e12 for row in (ours, theirs)],
                    "n": min(ours["n"], theirs["n"]),
                    "formula": SPEED_FORMULA,
                    "code": ours["code"],
                    "commit": ours["commit"],
                }
            )
    return made


def _pairs(members: Sequence[Row]) -> list[tuple[str, str]]:
    present = {row["objective"] for row in members}
    return [(method, rival) for method in METHODS for rival in RIVALS if {method, rival} <= present]


def _both(part: str, ours: Row, theirs: Row) -> list[Any]:
    return [row["seconds_by_part"][part] for row in (ours, theirs)]


def _rate(row: Row) -> float:
    """FLOP/s while matrix products run, the update left out."""
    rows_an_update = row["micro_batch_rows"] * (row.get("micro_batches") or 1) * row["num_processes"]
    tokens = rows_an_update * row["sequence_length"]
    seconds = sum(row["seconds_by_part"][part] for part in ("inputs", "forward", "backward"))
    return row["flops_per_token"] * tokens / seconds
