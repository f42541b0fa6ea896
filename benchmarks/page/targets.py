"""Whether the method is as much faster as it is meant to be, than plain scripts and than our own joint training.

Ratios are taken turn by turn within one contest, where both did the same rows one after the other, so that a machine
that slows down for a while slows down both sides of a ratio. The plain rival is never compiled, as such scripts are
not; our own joint training is compared as the method ran, compiled or not.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks import cases, rows
from benchmarks.cases import METHODS, PLAIN
from benchmarks.page.markdown import formulas, length, machine, shape, table
from benchmarks.rows import Row

OVER_PLAIN, OVER_JOINT = 2.5, 1.3
_SAME = ("contest", "recipe", "sequence_length", "vocab_size", "micro_batch_rows")
_WAYS = ("compiled", "activation_checkpointing")
_MACHINE = ("device", "num_processes", "threads", "dtype", "hardware", "micro_batches")
FORMULA = (
    "tokens/s(method) / tokens/s(rival) of each turn of one contest, median (lowest to highest); met where the median "
    "is at least the target; FLOPs ratio: FLOPs a token of rival / method, what the ratio would be at equal MFU"
)


def targets(found: Sequence[Row]) -> list[Row]:
    """A row for each method measured in one contest with the plain rival, or with our own joint objective."""
    made = []
    for ours, theirs, wanted in _pairs([row for row in rows.select(found, "throughput") if row.get("contest")]):
        turns = zip(ours["tokens_per_second_all"], theirs["tokens_per_second_all"], strict=True)
        ratios = [fast / slow for fast, slow in turns]
        made.append(
            {
                "kind": "target",
                **{name: ours[name] for name in _SAME},
                **{name: ours.get(name) for name in (*_MACHINE, *_WAYS)},
                "method": ours["objective"],
                "rival": theirs["objective"],
                "target": wanted,
                "ratio": median(ratios),
                "ratio_lowest": min(ratios),
                "ratio_highest": max(ratios),
                "flops_ratio": theirs["flops_per_token"] / ours["flops_per_token"],
                "turns_at_target": sum(ratio >= wanted for ratio in ratios),
                "met": median(ratios) >= wanted,
                "n": len(ratios),
                "formula": FORMULA,
                "code": ours["code"],
                "commit": ours["commit"],
            }
        )
    return made


def _pairs(measured: Sequence[Row]) -> Iterator[tuple[Row, Row, float]]:
    for ours in (row for row in measured if row["objective"] in METHODS):
        beside = [row for row in measured if all(row[name] == ours[name] for name in _SAME)]
        yield from ((ours, row, OVER_PLAIN) for row in beside if row["objective"] == PLAIN)
        joint = [row for row in beside if row["objective"] == cases.joint_of(ours["recipe"])]
        alike = [row for row in joint if all(row.get(name) == ours.get(name) for name in _WAYS)]
        yield from ((ours, row, OVER_JOINT) for row in alike)


def target_section(found: Sequence[Row], folder: Path) -> list[str]:
    """Each ratio beside its target, with its spread."""
    lines = [
        "## Targets",
        "",
        f"The method is meant to reach {OVER_PLAIN} times the tokens/s of a joint step as scripts are written "
        f"(`{PLAIN}`: stock transformers under bf16 autocast, eager attention, the LM head on all positions, no engine "
        f"of ours, never compiled) and {OVER_JOINT} times those of our own joint training (`joint` where the recipe's "
        "encoder can have it, `joint_shallow` otherwise), measured in one contest at equal shape and data.",
        "",
    ]
    made = rows.select(found, "target")
    if not made:
        absent = "No contest had a method beside either: `python -m benchmarks.measure base/frozen base/joint_plain`."
        return [*lines, absent, ""]
    lines += table(
        3,
        ("recipe, machine", "method", "rival", "tokens/s ratio", "FLOPs ratio", "target", "turns at target", "met"),
        (
            (
                f"{row['recipe']} {shape(row)}, {length(row['vocab_size'])}, {row['dtype']}, {machine(row)}",
                row["method"] + "".join(f", {way.replace('_', ' ')}" for way in _WAYS if row[way]),
                row["rival"],
                f"{row['ratio']:.3f} ({row['ratio_lowest']:.3f} to {row['ratio_highest']:.3f})",
                f"{row['flops_ratio']:.3f}",
                row["target"],
                f"{row['turns_at_target']} of {row['n']}",
                "yes" if row["met"] else "no",
            )
            for row in made
        ),
    )
    return [*lines, *formulas(made)]
