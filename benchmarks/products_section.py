"""The report's section on what a step's products leave. Lines of Markdown from rows alone, as in cost_sections.py."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import plots, rows
from benchmarks.contestant import PARTS
from benchmarks.markdown import formulas, machine, percent, shape, table
from benchmarks.rows import Row

KINDS = ("products", "attention", "rest")


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
        "softmax that counts as the rest.",
        "",
    ]
    head = ("objective", "part", "ms", "products", "attention", "rest")
    for row in made:
        compiled = "compiled" if row["compiled"] else "not compiled"
        lines += [f"**{row['recipe']}**, {shape(row)}, {row['dtype']}, {compiled}, {machine(row)}", ""]
        lines += [*table(2, head, _cells(row)), _verdict(row), ""]
    return [*lines, *formulas(made), "![An update and its products](products.png)", ""]


def milliseconds(row: Row, part: str) -> dict[str, float]:
    """Milliseconds of a part of an update by kind; what the products alone take may exceed what the part took."""
    here = row["by_part"][part]
    alone = {"products": here["products"], "attention": here["attention"]}
    return {name: 1e3 * value for name, value in {**alone, "rest": here["seconds"] - sum(alone.values())}.items()}


def _cells(row: Row) -> Iterator[tuple[object, ...]]:
    for part in PARTS:
        each = milliseconds(row, part)
        yield row["objective"], part, f"{sum(each.values()):.2f}", *(f"{each[kind]:.2f}" for kind in KINDS)


def _verdict(row: Row) -> str:
    low, high = percent(row["share_lowest"]), percent(row["share_highest"])
    told = f"Products and attention alone take {percent(row['share'])} ({low} to {high}) of the update"
    rates = f"{row['tflops']:.3g} TFLOP/s as it is, {row['tflops_alone']:.3g} if it were nothing else"
    vendor = row["vendor_peak_tflops"]
    if vendor is None:
        return f"{told}: {rates}."
    reach = f"{percent(row['tflops'] / vendor)} and {percent(row['tflops_alone'] / vendor)}"
    return f"{told}: {rates}; {reach} of the vendor's {vendor:,.0f}."
