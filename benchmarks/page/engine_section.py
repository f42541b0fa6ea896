"""The report's section on the auxiliary model's engines. Lines of Markdown from rows alone, as in cost_sections.py."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import rows
from benchmarks.page.markdown import formulas, machine, percent, table
from benchmarks.rows import Row

NO_GPU = (
    "No row here was measured on a GPU: none could be reached. `benchmarks/gpu.sh` makes them on a machine "
    "that has one."
)


def engine_section(found: Sequence[Row], folder: Path) -> list[str]:
    """What a forward pass takes in each engine; and whether any measured row of the page comes from a GPU."""
    measured = [row for kind in ("throughput", "replay", "engine") for row in rows.select(found, kind)]
    lines = ["## Engines of the auxiliary model", ""]
    if all(row["device"] == "cpu" for row in measured):
        lines += [NO_GPU, ""]
    engines = rows.select(found, "engine")
    if not engines:
        return [*lines, "No engine was timed here: `python -m benchmarks.engines` does it.", ""]
    head = ("recipe, machine", "type", "engine", "ms a forward pass", "most likely token agrees", "distance", "n")
    return [*lines, *table(3, head, map(_cells, engines)), *formulas(engines)]


def _cells(row: Row) -> tuple[object, ...]:
    shape = f"{row['recipe']} {row['micro_batch_rows']} x {row['sequence_length']}, {row['dtype']}, {machine(row)}"
    if not row["seconds"]:
        return (shape, row["model_type"], row["engine"], row["refused"], "", "", row["n"])
    agreement = percent(row["agreement"]) + (" (refused)" if row["refused"] else "")
    return (
        shape,
        row["model_type"],
        row["engine"],
        f"{1e3 * row['seconds']:.2f}",
        agreement,
        f"{row['distance']:.4f}",
        row["n"],
    )
