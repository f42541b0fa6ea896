"""Numbers and tables as Markdown text."""

from collections.abc import Iterable, Sequence

from benchmarks.rows import Row

MINUS = "\N{MINUS SIGN}"


def table(num_text: int, head: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """A table whose first `num_text` columns are text; the others are numbers, to the right."""
    rule = ["---" if column < num_text else "---:" for column in range(len(head))]
    return [_line(head), _line(rule), *(_line(line) for line in lines), ""]


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def percent(share: float) -> str:
    """12.3 %, negative with a minus sign."""
    return f"{100 * share:.1f} %".replace("-", MINUS)


def percents(shares: Sequence[float]) -> str:
    """20 to 30 %."""
    low, high = shares
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def inside(row: Row) -> str:
    """Where a row's saving lies with regard to the paper's range: yes, below or above."""
    low, high = row["claim"]
    return "below" if row["saving"] < low else "above" if row["saving"] > high else "yes"


def length(number: int) -> str:
    """32,000 as 32k."""
    return f"{number // 1000}k" if number % 1000 == 0 else f"{number:,}"


def shape(row: Row) -> str:
    """The tokens of an update, as micro-batches, where it is more than one, x rows x length."""
    many = row.get("micro_batches") or 1
    return f"{f'{many} x ' if many > 1 else ''}{row['micro_batch_rows']} x {row['sequence_length']}"


def machine(row: Row) -> str:
    """Where a row was measured, in a few words."""
    what = row["device"] if row["device"] != "cpu" else f"{row['hardware']['cpu']}, threads: {row['threads']}"
    return f"{row['num_processes']} x {what}"


def formulas(found: Iterable[Row]) -> list[str]:
    """The formulas of these rows, each once, with what n is."""
    seen: dict[str, list[str]] = {}
    for row in found:
        numbers = seen.setdefault(row["formula"], [])
        numbers += [str(row["n"])] if str(row["n"]) not in numbers else []
    return [f"*Formula:* {formula} (n = {', '.join(numbers)})" for formula, numbers in seen.items()] + [""]
