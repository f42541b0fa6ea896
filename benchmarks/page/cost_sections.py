"""The report's sections on FLOPs: a token's cost, what the method saves, the total with the auxiliary's training.

A section takes all rows and a folder for its pictures, and gives lines of Markdown. Nothing is typed in by hand: every
number comes from a row, and every sentence that explains one is made from it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.cases import METHODS
from benchmarks.costs import settings_of
from benchmarks.page import plots
from benchmarks.page.markdown import formulas, inside, length, percent, percents, table
from benchmarks.rows import Row

MAIN: dict[str, Any] = {"sequence_length": 512, "vocab_size": 32_000, "head": "masked"}


def claims_section(found: Sequence[Row], folder: Path) -> list[str]:
    """The ratios that the paper claims, in one picture."""
    claimed = [*rows.select(found, "saving", **MAIN), *rows.select(found, "memory_saving")]
    plots.savings_beside_claims([row for row in claimed if row["claim"]], folder / "savings.png")
    return [
        "## Beside the paper's claims",
        "",
        "What the method saves of each joint rival, recipe by recipe, and the paper's range as a band. The sections "
        "below have the numbers, their formulas, and why some lie outside.",
        "",
        "![Savings beside the paper's ranges](savings.png)",
        "",
    ]


def flops_section(found: Sequence[Row], folder: Path) -> list[str]:
    """FLOPs a token by objective, and what the method saves of each rival."""
    counted = rows.select(found, "flops", **MAIN)
    savings = rows.select(found, "saving", **MAIN)
    plots.flops_by_part(counted, folder / "flops.png")
    lines = [
        "## FLOPs",
        "",
        f"MFLOPs per token of training, rows of {MAIN['sequence_length']}, vocabulary {length(MAIN['vocab_size'])}, LM "
        "head on the masked positions. `frozen` is the method online, `replay` the method with replacements prepared "
        "offline; the rivals train their generator. r is auxiliary / main. Not listed because they cost the same: "
        "`two_stage` (as `frozen`), `unigram` and `random` (as `replay`), `joint_decoupled` (as `joint_shallow`).",
        "",
    ]
    lines += table(
        2,
        ("recipe", "objective", "main", "auxiliary", "r", "total"),
        (
            (
                row["recipe"],
                row["objective"],
                f"{row['discriminator_flops_per_token'] / 1e6:,.1f}",
                f"{row['auxiliary_flops_per_token'] / 1e6:,.1f}",
                f"{row['auxiliary_flops_per_token'] / row['discriminator_flops_per_token']:.3f}",
                f"{row['flops_per_token'] / 1e6:,.1f}",
            )
            for row in counted
        ),
    )
    lines += [*formulas(counted), "![FLOPs by part](flops.png)", ""]
    return [*lines, *_savings(savings, found), *_sensitivity(found)]


def _savings(savings: Sequence[Row], found: Sequence[Row]) -> list[str]:
    """Savings at the main setting, and for each outside the paper's range the reason."""
    lines = ["### Saved of each rival", ""]
    lines += table(
        3,
        ("recipe", "rival", "method", "saved", "paper", "inside", "rival's r", "r that the range takes"),
        (
            (
                row["recipe"],
                row["rival"],
                row["method"],
                percent(row["saving"]),
                percents(row["claim"]),
                inside(row),
                f"{row['auxiliary_to_main']:.3f}",
                "{:.3f} to {:.3f}".format(*row["needed_auxiliary_to_main"]),
            )
            for row in savings
        ),
    )
    outside = [f"- {_why_outside(row, found)}" for row in savings if inside(row) != "yes"]
    return [*lines, *formulas(savings), "Outside the paper's range, and why:", "", *outside, ""]


def _why_outside(row: Row, found: Sequence[Row]) -> str:
    """One sentence on a saving outside the paper's range, made from its numbers."""
    low, high = row["needed_auxiliary_to_main"]
    ratio, own = row["auxiliary_to_main"], row["saving_with_rivals_generator"]
    text = (
        f"{row['recipe']}, {row['method']} against {row['rival']}: {percent(row['saving'])}, {inside(row)} "
        f"{percents(row['claim'])}. The rival's generator costs {ratio:.3f} of its discriminator; the range takes "
        f"{low:.3f} to {high:.3f}"
    )
    if abs(own - row["saving"]) > 5e-4:
        text += (
            f". Besides, the method's auxiliary model is not the rival's generator; with the rival's own, frozen, the "
            f"saving would be {percent(own)}"
        )
    text += f". {percent(row['lm_head_share_of_auxiliary'])} of the generator's cost is its LM head"
    same = {name: row[name] for name in ("recipe", "rival", "method", "sequence_length")}
    within = [
        f"{length(other['vocab_size'])} with a head on {other['head']} positions ({percent(other['saving'])})"
        for other in rows.select(found, "saving", **same)
        if inside(other) == "yes"
    ]
    return text + f". Inside it: {', '.join(within) or 'no vocabulary or head counted here'}."


def _sensitivity(found: Sequence[Row]) -> list[str]:
    """How the savings hang on vocabulary, head and row length, against the rival with the method's own shape."""
    savings = rows.select(found, "saving", rival="joint_shallow")
    lines = [
        "### What the savings hang on",
        "",
        "Against `joint_shallow`, whose generator has the shape of the method's auxiliary model. An LM head on all "
        "positions, in method and rival alike, is what a stock masked-LM class runs.",
        "",
    ]
    content = []
    for setting in settings_of(savings):
        ours = [rows.the(savings, "saving", method=method, **setting) for method in METHODS]
        content.append(
            (
                setting["recipe"],
                setting["sequence_length"],
                length(setting["vocab_size"]),
                setting["head"],
                f"{ours[0]['auxiliary_to_main']:.3f}",
                *(f"{percent(row['saving'])} ({inside(row)})" for row in ours),
            )
        )
    head = ("recipe", "row", "vocabulary", "LM head on", "r", "frozen saves (inside)", "replay saves (inside)")
    return [*lines, *table(1, head, content)]


def total_cost_section(found: Sequence[Row], folder: Path) -> list[str]:
    """Total cost with the auxiliary model's own training counted."""
    totals = rows.select(found, "total_cost", **MAIN)
    lines = [
        "## Total cost, the auxiliary model's training counted",
        "",
        "Break-even: the share k of the main run's updates that may be spent on training the auxiliary model before "
        "one run costs as much as the rival's. Beside it the FLOPs of n runs that share one auxiliary model, trained "
        "for the recipe's own k, relative to n runs of the rival.",
        "",
    ]
    numbers = [each["num_runs"] for each in totals[0]["runs"]]
    head = ("recipe", "rival", "method", "break-even k", "recipe's k", *(f"n = {n}" for n in numbers))
    content = [
        (
            row["recipe"],
            row["rival"],
            method,
            f"{row['runs'][0][f'break_even_k_{method}']:.3f}",
            f"{row['auxiliary_share_k']:.2f}",
            *(percent(each[f"{method}_to_rival"]) for each in row["runs"]),
        )
        for row in totals
        for method in METHODS
    ]
    return [*lines, *table(3, head, content), *formulas(totals)]
