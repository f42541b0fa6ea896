"""The report's sections on machines: memory as simulated, speed as measured, both beside each rival's.

Lines of Markdown from rows alone, as in cost_sections.py.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import cases, rows
from benchmarks.cases import METHODS
from benchmarks.page import comparisons, plots
from benchmarks.page.markdown import formulas, inside, length, machine, percent, percents, shape, table
from benchmarks.rows import Row


def memory_section(found: Sequence[Row], folder: Path) -> list[str]:
    """Simulated peaks by kind, what the method saves, and bytes per GPU by ZeRO stage."""
    simulated = rows.select(found, "memory")
    plots.memory_by_kind(simulated, folder / "memory.png")
    kinds = list(simulated[0]["peak_bytes"])
    lines = [
        "## Memory",
        "",
        "GiB at the peak of one process's step, simulated (no ZeRO, no buffers). Attention is fused and keeps no mask. "
        "Other dropout, which the ELECTRA recipes have, keeps masks of two bytes a value as on a CPU; a GPU takes one.",
        "",
    ]
    lines += table(
        3,
        ("recipe", "objective", "rows", *kinds, "peak"),
        (
            (
                row["recipe"],
                row["objective"],
                f"{row['micro_batch_rows']} x {row['sequence_length']}",
                *(f"{row['peak_bytes'][kind] / 2**30:.2f}" for kind in kinds),
                f"{row['peak_memory_gib']:.2f}",
            )
            for row in simulated
        ),
    )
    lines += [*formulas(simulated), "![Memory by kind](memory.png)", "", "### Saved of each rival", ""]
    savings = rows.select(found, "memory_saving")
    lines += table(
        3,
        ("recipe", "rival", "method", "saved", "paper", "inside", "most of it"),
        (
            (
                row["recipe"],
                row["rival"],
                row["method"],
                percent(row["saving"]),
                percents(row["claim"]) if row["claim"] else "none stated",
                inside(row) if row["claim"] else "",
                _largest(row["gib_by_kind"]),
            )
            for row in savings
        ),
    )
    return [*lines, *formulas(savings), *_per_gpu(found)]


def _largest(gib_by_kind: dict[str, float]) -> str:
    kind = max(gib_by_kind, key=lambda name: gib_by_kind[name])
    return f"{kind}: {gib_by_kind[kind]:.2f} GiB"


def _per_gpu(found: Sequence[Row]) -> list[str]:
    derived = rows.select(found, "per_gpu")
    places = list(dict.fromkeys((row["zero_stage"], row["offload"]) for row in derived))
    numbers = list(dict.fromkeys(row["num_gpus"] for row in derived))
    lines = ["### Per GPU under ZeRO", "", f"GiB on each of {' / '.join(map(str, numbers))} GPUs.", ""]
    content = []
    for recipe, objective in dict.fromkeys((row["recipe"], row["objective"]) for row in derived):
        cells = []
        for stage, offload in places:
            here = {"recipe": recipe, "objective": objective, "zero_stage": stage, "offload": offload}
            cells.append(
                " / ".join(f"{rows.the(derived, 'per_gpu', num_gpus=n, **here)['total_gib']:.1f}" for n in numbers)
            )
        content.append((recipe, objective, *cells))
    head = (f"stage {stage}" + (f", offload {what}" if what != "none" else "") for stage, what in places)
    return [*lines, *table(2, ("recipe", "objective", *head), content), *formulas(derived)]


def throughput_section(found: Sequence[Row], folder: Path) -> list[str]:
    """Tokens/s and MFU of each run measured, and the method's lead over each rival beside the FLOPs' promise."""
    measured = _beside_the_plain_rival(comparisons.groups(found, "throughput"))
    plots.tokens_per_second(measured, folder / "throughput.png")
    lines = ["## Throughput", "", "Measured in turn within one run; medians of n turns, quartiles in brackets.", ""]
    for shared, members in measured:
        lines += [f"**{shared['recipe']}**, {_conditions(shared)}", ""]
        lines += table(
            1,
            ("objective", "tokens/s", "n", "MFU vendor", "MFU measured", "peak GiB", "simulated GiB"),
            (_speed_cells(row) for row in members),
        )
        absent = [each for each in (*METHODS, *cases.rivals(shared["recipe"])) if not _has(members, each)]
        if _has(members, cases.PLAIN):
            lines += [f"`{cases.PLAIN}` runs its LM head on all positions, without an engine, never compiled.", ""]
        if absent and any(row["objective"] != cases.PLAIN for row in members):
            lines += [f"Not measured here: {', '.join(absent)}.", ""]
    lines += [*formulas(rows.select(found, "throughput")), "![Tokens per second](throughput.png)", ""]
    return [*lines, *_leads(rows.select(found, "speed"))]


def _beside_the_plain_rival(measured: Sequence[tuple[Row, list[Row]]]) -> list[tuple[Row, list[Row]]]:
    """The same groups, the plain rival's row in those that were timed in turn with it."""
    apart = [group for group in measured if group[1][0]["objective"] == cases.PLAIN]
    others, plain = [group for group in measured if group not in apart], [row for _, found in apart for row in found]
    beside = [(shared, [*members, *(row for row in plain if _one_contest(row, members))]) for shared, members in others]
    alone = [(shared, found) for shared, found in apart if not any(_one_contest(found[0], each) for _, each in others)]
    return [*beside, *alone]


def _one_contest(row: Row, members: Sequence[Row]) -> bool:
    return row.get("contest") is not None and any(each.get("contest") == row["contest"] for each in members)


def _has(members: Sequence[Row], objective: str) -> bool:
    return any(row["objective"] == objective for row in members)


def _conditions(shared: Row) -> str:
    engine = f"ZeRO-{shared['zero_stage']}" if shared["zero_stage"] else "no engine"
    return (
        f"{shape(shared)} tokens an update of each process, "
        f"vocabulary {length(shared['vocab_size'])}, LM head on {shared['head']} positions, "
        f"{shared['dtype']}, {engine}, {'compiled' if shared['compiled'] else 'not compiled'}, "
        f"{'activations computed again, ' if shared['activation_checkpointing'] else ''}{machine(shared)}"
    )


def _speed_cells(row: Row) -> tuple[object, ...]:
    simulated, peak, vendor = row["simulated_memory_gib"], row["peak_memory_gib"], row["mfu_vendor"]
    speed, low, high = (f"{row[f'tokens_per_second{end}']:,.0f}" for end in ("", "_low", "_high"))
    return (
        row["objective"],
        f"{speed} ({low} to {high})",
        row["n"],
        f"{percent(vendor)} of {row['vendor_peak_tflops']:,.0f} TFLOP/s" if vendor else "none",
        f"{percent(row['mfu_measured'])} of {row['measured_peak_tflops']:,.3g} TFLOP/s",
        f"{peak:.3f}",
        "not simulated" if simulated is None else f"{simulated:.3f} ({percent(simulated / peak - 1)})",
    )


def _leads(speeds: Sequence[Row]) -> list[str]:
    if not speeds:
        return ["### Lead over each rival", "", "No method was measured beside a rival in one run.", ""]
    lines = ["### Lead over each rival", ""]
    lines += table(
        3,
        ("recipe, machine", "method", "rival", "tokens/s ratio", "FLOPs ratio", "difference", "n"),
        (
            (
                f"{row['recipe']} {shape(row)}, {machine(row)}",
                row["method"] + (", compiled" if row["compiled"] else ""),
                row["rival"],
                f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})",
                f"{row['flops_ratio']:.3f}",
                percent(row["difference"]),
                row["n"],
            )
            for row in speeds
        ),
    )
    lines += [*formulas(speeds), _who_is_faster(speeds), ""]
    apart = [f"- {_what_eats(row)}" for row in speeds if not row["agrees"]]
    if not apart:
        return [*lines, f"All within {percent(comparisons.AGREEMENT)} of the FLOPs' ratio.", ""]
    return [
        *lines,
        f"More than {percent(comparisons.AGREEMENT)} from the FLOPs' ratio, and what eats it:",
        "",
        *apart,
        "",
    ]


def _who_is_faster(speeds: Sequence[Row]) -> str:
    """Whether each method beat every rival measured beside it."""
    slower = [
        f"{row['method']} was slower than {row['rival']} ({row['recipe']} on {machine(row)}: {row['ratio']:.3f})"
        for row in speeds
        if row["ratio"] <= 1
    ]
    return "; ".join(slower) + "." if slower else "Each method was faster than every joint rival measured beside it."


def _what_eats(row: Row) -> str:
    """One sentence on a lead that is not the FLOPs' ratio, from the seconds of the step's parts."""
    (ours, theirs), (our_rate, their_rate) = row["update_seconds"], row["rate_tflops"]
    return (
        f"{row['recipe']} on {machine(row)}, {row['method']} against {row['rival']}: {row['ratio']:.3f} measured, "
        f"{row['flops_ratio']:.3f} by FLOPs. The update of the weights takes {1e3 * ours:.0f} ms against "
        f"{1e3 * theirs:.0f} ms; the rest of the step runs at {our_rate:.3g} against {their_rate:.3g} TFLOP/s."
    )
