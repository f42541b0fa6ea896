"""The report's section on what a step's products leave. Lines of Markdown from rows alone, as in cost_sections.py."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import rows
from benchmarks.contest.contestant import PARTS
from benchmarks.page import plots
from benchmarks.page.markdown import MINUS, formulas, length, machine, percent, shape, table
from benchmarks.rows import Row

KINDS = ("products", "attention", "rest")
_RATES = ("tflops", "tflops_alone")


def products_section(found: Sequence[Row], folder: Path) -> list[str]:
    """An update beside its matrix products and attention alone, by part, and the peak that they leave within reach."""
    made = rows.select(found, "products")
    lines = ["## What a step's products leave", ""]
    if not made:
        return [*lines, "No step was timed beside its products here: `python -m benchmarks.products` does it.", ""]
    plots.step_by_part(made, folder / "products.png")
    lines += [
        "A step cannot be quicker than its own matrix products and attention on the same kernels; what else it does "
        "can be fused, hidden or left out. Plain attention, which short rows have on a CPU, is matrix products and a "
        "softmax that counts as the rest. In brackets: of the vendor's peak. A rest below zero is noise, and so is a "
        "share above 100 %.",
        "",
    ]
    whole = (
        "recipe, machine",
        "objective",
        "products and attention of the update",
        "TFLOP/s",
        "if it were those alone",
    )
    lines += table(2, whole, map(_whole_cells, made))
    parts = ("recipe, machine", "objective", "part", "ms", *KINDS)
    lines += table(3, parts, (line for row in made for line in _part_cells(row)))
    return [*lines, *formulas(made), "![An update and its products](products.png)", ""]


def milliseconds(row: Row, part: str) -> dict[str, float]:
    """Milliseconds of a part of an update by kind; what the products alone take may exceed what the part took."""
    here = row["by_part"][part]
    alone = {"products": here["products"], "attention": here["attention"]}
    return {name: 1e3 * value for name, value in {**alone, "rest": here["seconds"] - sum(alone.values())}.items()}


def _where(row: Row) -> str:
    how = ", compiled" if row["compiled"] else ""
    how += ", activations computed again" if row["activation_checkpointing"] else ""
    engine = f"ZeRO-{row['zero_stage']}" if row["zero_stage"] else "no engine"
    words = length(row["vocab_size"])
    return f"{row['recipe']} {shape(row)}, {words} words, {row['dtype']}, {engine}{how}, {machine(row)}"


def _whole_cells(row: Row) -> tuple[object, ...]:
    low, high, vendor = percent(row["share_lowest"]), percent(row["share_highest"]), row["vendor_peak_tflops"]
    rates = (f"{row[name]:.3g}" + (f" ({percent(row[name] / vendor)})" if vendor else "") for name in _RATES)
    return _where(row), row["objective"], f"{percent(row['share'])} ({low} to {high})", *rates


def _part_cells(row: Row) -> Iterator[tuple[object, ...]]:
    for part in PARTS:
        each = milliseconds(row, part)
        total, *kinds = (f"{number:.1f}".replace("-", MINUS) for number in (sum(each.values()), *each.values()))
        yield _where(row), row["objective"], part, total, *kinds
