"""The report's section on replacement paths: what a replayed step costs, what building takes, how large paths are.

Lines of Markdown from rows alone, as in cost_sections.py.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks import rows
from benchmarks.page import comparisons, plots
from benchmarks.page.markdown import formulas, length, machine, percent, shape, table
from benchmarks.rows import Row

SIDE_BY_SIDE = ("joint_shallow", "frozen", "replay")
# What the mission allows a replayed step to take above one on input that lies ready.
ALLOWED = 0.03


def replay_section(found: Sequence[Row], folder: Path) -> list[str]:
    """Joint, frozen and replayed steps side by side; then the price of paths, and their sizes."""
    lines = ["## Replacement paths", ""]
    lines += _side_by_side(found)
    timed = rows.select(found, "replay")
    if not timed:
        return [*lines, "No paths were timed here: `python -m benchmarks.replay` does it.", ""]
    lines += _steps(timed)
    lines += _building(timed)
    lines += formulas(timed)
    counted = [row for row in timed if row["entries"]]
    if not counted:
        absent = (
            "Entries and bytes need real text: `python -m benchmarks.replay CASE --corpus FOLDER --auxiliary FOLDER`."
        )
        return [*lines, absent, ""]
    plots.entries_per_position(counted, folder / "entries.png")
    return [*lines, *_sizes(counted), "![Entries per position](entries.png)", ""]


def _side_by_side(found: Sequence[Row]) -> list[str]:
    content = []
    for shared, members in comparisons.groups(found, "throughput"):
        present = {row["objective"]: row for row in members}
        if not set(SIDE_BY_SIDE) <= present.keys():
            continue
        joint = present["joint_shallow"]
        for name in SIDE_BY_SIDE:
            row = present[name]
            content.append(
                (
                    f"{shared['recipe']} {shape(shared)}, {machine(shared)}",
                    name + (", compiled" if shared["compiled"] else ""),
                    f"{row['tokens_per_second']:,.0f}",
                    f"{row['tokens_per_second'] / joint['tokens_per_second']:.3f}",
                    f"{row['peak_memory_gib']:.3f}",
                    f"{row['peak_memory_gib'] / joint['peak_memory_gib']:.3f}",
                    row["n"],
                )
            )
    if not content:
        return ["No run measured joint_shallow, frozen and replay side by side.", ""]
    head = ("recipe, machine", "objective", "tokens/s", "to joint", "peak GiB", "to joint", "n")
    return table(2, head, content)


def _steps(timed: Sequence[Row]) -> list[str]:
    lines = ["### A replayed step beside one on input that lies ready", ""]
    lines += table(
        1,
        ("case", "ready, tokens/s", "replay", "frozen", "replay / ready, s", f"within {percent(ALLOWED)}", "n"),
        (
            (
                _case(row),
                *(f"{row['tokens_per_second'][name]:,.0f}" for name in ("ready", "replay", "frozen")),
                f"{row['replay_to_ready']:.3f} ({min(_turns(row)):.3f} to {max(_turns(row)):.3f})",
                "yes" if row["replay_to_ready"] <= 1 + ALLOWED else "no",
                row["n"],
            )
            for row in timed
        ),
    )
    return lines


def _turns(row: Row) -> list[float]:
    seconds = row["step_seconds"]
    return [ours / ready for ours, ready in zip(seconds["replay"], seconds["ready"], strict=True)]


def _building(timed: Sequence[Row]) -> list[str]:
    lines = ["### What building costs, and when it has paid for itself", ""]
    return lines + table(
        1,
        ("case", "forward pass, s", "with paths, s", "on top", "passes to pay"),
        (
            (
                _case(row),
                f"{median(row['build_seconds']['forward']):.3f}",
                f"{median(row['build_seconds']['paths']):.3f}",
                percent(row["paths_to_forward"] - 1),
                f"{row['passes_to_pay']:.2f}" if row["passes_to_pay"] else "never (a replayed step is no faster)",
            )
            for row in timed
        ),
    )


def _sizes(counted: Sequence[Row]) -> list[str]:
    lines = ["### Entries and bytes on real text", ""]
    return lines + table(
        2,
        ("case", "words, auxiliary model", "T", "entries a position", "bytes a masked position", "bytes a token"),
        (
            (
                _case(row),
                f"{row['corpus']}, {row['auxiliary']}",
                f"{each['t_min']:g} to {each['t_max']:g}",
                f"{each['mean']:.3f}",
                *(
                    (f"{row['bytes_per_masked_position']:.2f}", f"{row['bytes_per_token']:.3f}")
                    if each is row["entries"][-1]
                    else ("", "")
                ),
            )
            for row in counted
            for each in row["entries"]
        ),
    )


def _case(row: Row) -> str:
    where = row["device"] if row["device"] != "cpu" else f"{row['hardware']['cpu']}, threads: {row['threads']}"
    return (
        f"{row['recipe']} {row['micro_batch_rows']} x {row['sequence_length']}, vocabulary "
        f"{length(row['vocab_size'])}, {row['corpus']}, {row['dtype']}, {where}"
        f"{', compiled' if row.get('compiled') else ''}"
    )
