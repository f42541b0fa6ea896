"""One page from result rows: report.md with its pictures, and rows.jsonl with every figure on it.

FLOPs are counted anew, simulated rows are made where case or code has changed, measured rows come from this machine's
runs/bench/measured.jsonl, replay.jsonl, engines.jsonl and products.jsonl, and from any files of other machines named
with --rows, the rows of the quality study from benchmarks/results/quality.jsonl. Measured rows of mixed code versions
are refused, and so is a page without any: a table has no silent gaps.

    python -m benchmarks.report [--output runs/bench] [--rows benchmarks/results/gpu_h200.jsonl ...]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import cases, costs, rows
from benchmarks.memory import per_gpu
from benchmarks.page import (
    comparisons,
    cost_sections,
    engine_section,
    machine_sections,
    products_section,
    quality_sections,
    replay_section,
    targets,
)
from benchmarks.page.markdown import table
from benchmarks.rows import Row
from benchmarks.simulate import simulate_all

QUALITY = rows.ROOT / "benchmarks/results/quality.jsonl"
# What is measured, by the file of runs/bench that keeps it: the kind of its rows.
MEASURED = {"measured": "throughput", "replay": "replay", "engines": "engine", "products": "products"}
# Each takes all rows and a folder for its pictures and gives lines of Markdown; the page has them in this order.
SECTIONS = (
    cost_sections.claims_section,
    cost_sections.flops_section,
    machine_sections.memory_section,
    machine_sections.throughput_section,
    targets.target_section,
    products_section.products_section,
    engine_section.engine_section,
    replay_section.replay_section,
    cost_sections.total_cost_section,
    quality_sections.quality_section,
)


def gather(folder: Path, others: Sequence[Path], mixed_code: bool = False) -> list[Row]:
    """All rows: counted, simulated, measured here and elsewhere, and what is derived from them.

    `mixed_code` allows measured rows of several code versions. Raises ValueError for such rows without it, for no
    measured row or one that is there twice, FileNotFoundError for a file that is absent.
    """
    here = [path for name in MEASURED if (path := folder / f"{name}.jsonl").exists()]
    read = [row for path in (*here, *others) for row in rows.read(path)]
    measured = [row for kind in MEASURED.values() for row in rows.select(read, kind)]
    throughput, quality = (rows.select(read, kind) for kind in ("throughput", "quality"))
    if not throughput:
        raise ValueError(
            f"no measured row in {folder / 'measured.jsonl'} or in the files named with --rows: run "
            "`python -m benchmarks.measure base/frozen base/joint_shallow` first, or name a file of another machine"
        )
    if not mixed_code:
        rows.one_version(measured)
    rows.distinct([*measured, *quality])
    counted = costs.count_all(cases.COUNTED)
    simulated = simulate_all(cases.SIMULATED, folder / "simulated.jsonl")
    found = [*counted, *simulated, *measured, *quality]
    return [
        *found,
        *costs.savings(counted),
        *costs.total_costs(counted),
        *comparisons.memory_savings(simulated),
        *per_gpu.per_gpu_all(simulated),
        *comparisons.speeds(throughput),
        *targets.targets(throughput),
    ]


def write(found: Sequence[Row], folder: Path) -> Path:
    """Write rows.jsonl, the pictures and report.md; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows.write(folder / "rows.jsonl", found)
    lines = [
        "# What a frozen auxiliary model saves",
        "",
        "Replaced-token detection against a frozen (`frozen`) or precomputed (`replay`) auxiliary model, beside joint "
        "training of a generator. Every figure is in rows.jsonl beside this page, with its formula and its origin.",
        "",
        *_origins(found),
    ]
    for section in SECTIONS:
        lines += section(found, folder)
    page = folder / "report.md"
    page.write_text("\n".join(lines).rstrip() + "\n")
    return page


def _origins(found: Sequence[Row]) -> list[str]:
    """Which code and machine the rows come from."""
    counts: dict[tuple[str, ...], int] = {}
    current = {kind: rows.code_version(kind) for kind in rows.SOURCES}
    for row in found:
        if "libraries" in row:
            hardware = row["hardware"]
            machine = f"{hardware['gpu'] or 'no GPU'}; {hardware['cpu']}, {hardware['cores']} cores"
            libraries = ", ".join(f"{name} {row['libraries'][name]}" for name in ("torch", "deepspeed", "transformers"))
            code = row["code"] + ("" if row["code"] == current[row["kind"]] else " (not this checkout's)")
            origin = (row["kind"], row["commit"], code, machine, libraries)
            counts[origin] = counts.get(origin, 0) + 1
    head = ("rows", "n", "commit", "code", "made on", "with")
    return table(1, head, ((kind, n, *rest) for (kind, *rest), n in counts.items()))


def main(arguments: Sequence[str]) -> int:
    """Make the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of kept rows and of the page")
    parser.add_argument("--rows", type=Path, nargs="*", default=[], help="measured rows of other machines")
    parser.add_argument("--mixed_code", action="store_true", help="allow measured rows of several code versions")
    given = parser.parse_args(arguments)
    try:
        others = [*given.rows, *([QUALITY] if QUALITY.exists() and QUALITY not in given.rows else [])]
        page = write(gather(given.output, others, given.mixed_code), given.output)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
