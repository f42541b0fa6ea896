"""The report's pictures, drawn from result rows: bars stacked by part or kind, and ratios beside the paper's ranges."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cases import OBJECTIVES, PLAIN
from benchmarks.memory.live_memory import KINDS
from benchmarks.page.markdown import shape
from benchmarks.rows import Row

_INK, _FAINT, _CLAIM = "#222222", "#d9d9d9", "#bfe3c0"
_PARTS = {
    "embedding_projection": "#bdbdbd",
    "attention_projections": "#1f5a94",
    "attention_scores": "#6baed6",
    "feed_forward": "#b5cfe8",
    "rtd_head": "#756bb1",
    "lm_head": "#e6793a",
}
_KIND_COLOURS = ("#1f5a94", "#6baed6", "#9e9ac8", "#bdbdbd", "#e6793a", "#f7c59f")
_KINDS = dict(zip(KINDS, _KIND_COLOURS, strict=True))
_STEP = {"products": "#1f5a94", "attention": "#6baed6", "rest": _FAINT}
_OBJECTIVE_COLOURS = {name: f"C{number}" for number, name in enumerate(OBJECTIVES)} | {PLAIN: "#bdbdbd"}


def flops_by_part(found: Sequence[Row], path: Path) -> None:
    """GFLOPs a token of each objective, stacked by part; the generator's parts hatched; a panel for each recipe."""
    panels = _by_recipe(found)
    figure, axes = _panels(len(panels), "GFLOPs per token")
    for axis, (recipe, members) in zip(axes, panels, strict=False):
        for place, row in enumerate(members):
            left = 0.0
            for model, hatch in (("discriminator", ""), ("auxiliary", "////")):
                for part, colour in _PARTS.items():
                    width = (
                        sum(p["flops_per_token"] for p in row["parts"] if (p["model"], p["part"]) == (model, part))
                        / 1e9
                    )
                    axis.barh(place, width, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4)
                    left += width
            axis.text(left, place, f" {left:.2f}", va="center", fontsize=8, color=_INK)
        _name_bars(axis, recipe, [row["objective"] for row in members])
    labels = [part.replace("_", " ") for part in _PARTS]
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in _PARTS.values()]
    handles.append(plt.Rectangle((0, 0), 1, 1, facecolor="white", edgecolor=_INK, hatch="////"))
    _finish(figure, path, handles, [*labels, "of the auxiliary model"])


def memory_by_kind(found: Sequence[Row], path: Path) -> None:
    """GiB at the peak of each objective, stacked by kind; a panel for each recipe."""
    panels = _by_recipe(found)
    figure, axes = _panels(len(panels), "GiB at the peak of one process's step")
    for axis, (recipe, members) in zip(axes, panels, strict=False):
        for place, row in enumerate(members):
            left = 0.0
            for kind in KINDS:
                width = row["peak_bytes"][kind] / 2**30
                axis.barh(place, width, left=left, color=_KINDS[kind], edgecolor="white", linewidth=0.4)
                left += width
            axis.text(left, place, f" {left:.1f}", va="center", fontsize=8, color=_INK)
        title = f"{recipe}, {members[0]['micro_batch_rows']} rows of {members[0]['sequence_length']}"
        _name_bars(axis, title, [row["objective"] for row in members])
    _finish(figure, path, [plt.Rectangle((0, 0), 1, 1, color=_KINDS[kind]) for kind in KINDS], list(KINDS))


def tokens_per_second(measured: Sequence[tuple[Row, list[Row]]], path: Path) -> None:
    """Tokens/s of each objective with its quartiles; a panel for each group measured in one run."""
    figure, axes = _panels(len(measured), "tokens per second, median and quartiles")
    for axis, (shared, members) in zip(axes, measured, strict=False):
        members = sorted(members, key=_order, reverse=True)
        for place, row in enumerate(members):
            speed, low, high = (row[f"tokens_per_second{end}"] for end in ("", "_low", "_high"))
            axis.barh(place, speed, color=_OBJECTIVE_COLOURS[row["objective"]])
            axis.errorbar(speed, place, xerr=[[speed - low], [high - speed]], color=_INK, capsize=2, linewidth=1)
            axis.text(high, place, f" {speed:,.0f}", va="center", fontsize=8, color=_INK)
        title = f"{shared['recipe']}, {shape(shared)}, {machine(shared)}"
        title += ", compiled" if shared["compiled"] else ""
        _name_bars(axis, title, [row["objective"] for row in members])
    _finish(figure, path, [], [])


def step_by_part(found: Sequence[Row], path: Path) -> None:
    """Milliseconds of each part of an update: what products and attention take alone, and the rest; a panel a row."""
    figure, axes = _panels(len(found), "ms an update")
    for axis, row in zip(axes, found, strict=False):
        parts = list(row["by_part"].items())[::-1]
        for place, (_, here) in enumerate(parts):
            left = 0.0
            for kind, colour in _STEP.items():
                until = here["seconds"] if kind == "rest" else left + here[kind]
                axis.barh(place, 1e3 * max(0.0, until - left), left=1e3 * left, color=colour)
                left = max(left, until)
            axis.text(1e3 * left, place, f" {1e3 * here['seconds']:,.1f}", va="center", fontsize=8, color=_INK)
        title = f"{row['recipe']}, {row['objective']}, {shape(row)}, {row['dtype']}, {machine(row)}"
        title += "".join(f", {way}" for way in ("compiled", "activation_checkpointing") if row[way])
        _name_bars(axis, title.replace("_", " "), [name for name, _ in parts])
    labels = ["matrix products alone", "fused attention alone", "the rest"]
    _finish(figure, path, [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in _STEP.values()], labels)


def entries_per_position(counted: Sequence[Row], path: Path) -> None:
    """Share of masked positions by the number of entries in their path, a colour for each range of T; a panel a row."""
    figure, axes = _panels(len(counted), "entries in a position's path")
    for axis, row in zip(axes, counted, strict=False):
        ranges = row["entries"]
        width = 0.8 / len(ranges)
        for number, each in enumerate(ranges):
            positions = each["positions_by_entries"]
            shares = [count / sum(positions) for count in positions]
            places = [entries + width * (number - (len(ranges) - 1) / 2) for entries in range(len(shares))]
            label = f"T {each['t_min']:g} to {each['t_max']:g}, mean {each['mean']:.2f}"
            axis.bar(places[1:], shares[1:], width=width, color=f"C{number}", label=label)
        axis.set_title(f"{row['recipe']}, vocabulary {row['vocab_size']:,}", fontsize=9, loc="left", color=_INK)
        axis.set_ylabel("share of masked positions", fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8, frameon=False)
    _finish(figure, path, [], [])


def savings_beside_claims(found: Sequence[Row], path: Path) -> None:
    """Share of each rival's FLOPs or memory saved, for each recipe; the paper's range as a band; a panel a claim."""
    claims = list(dict.fromkeys((row["kind"], row["method"]) for row in found))
    figure, axes = _panels(len(claims), "saved of what the rival takes, %")
    for axis, (kind, method) in zip(axes, claims, strict=False):
        members = [row for row in found if (row["kind"], row["method"]) == (kind, method)][::-1]
        low, high = members[0]["claim"]
        axis.axvspan(100 * low, 100 * high, color=_CLAIM, zorder=0)
        for place, row in enumerate(members):
            axis.barh(place, 100 * row["saving"], color=_OBJECTIVE_COLOURS[row["rival"]], height=0.7)
            axis.text(max(0, 100 * row["saving"]), place, f" {100 * row['saving']:.1f}", va="center", fontsize=8)
        what = "memory at the peak" if kind == "memory_saving" else "FLOPs"
        _name_bars(axis, f"{what}, {method}; band: the paper", [f"{r['recipe']} / {r['rival']}" for r in members])
        axis.axvline(0, color=_INK, linewidth=0.8)
    _finish(figure, path, [], [])


def machine(shared: Row) -> str:
    """A measured row's machine in a few words."""
    number = shared["num_processes"]
    what = shared["device"] if shared["device"] != "cpu" else f"CPU, threads: {shared['threads']}"
    return f"{number} x {what}" if number > 1 else str(what)


def _by_recipe(found: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    ordered = [list(members) for _, members in groupby(found, key=lambda row: row["recipe"])]
    return [(members[0]["recipe"], sorted(members, key=_order, reverse=True)) for members in ordered]


def _order(row: Row) -> int:
    return OBJECTIVES.index(row["objective"])


def _panels(count: int, label: str) -> tuple[Figure, list[Axes]]:
    columns = min(2, count)
    lines = -(-count // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5.6 * columns, 2.7 * lines + 0.6), squeeze=False)
    for unused in axes.flat[count:]:
        unused.set_visible(False)
    for axis in axes.flat[:count]:
        axis.set_xlabel(label, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.use_sticky_edges = False  # or a last part of width 0 leaves no room for the numbers
        axis.margins(x=0.15, y=0.03)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", color=_FAINT, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, list(axes.flat[:count])


def _name_bars(axis: Axes, title: str, names: Iterable[str]) -> None:
    names = list(names)
    axis.set_xlim(left=min(0.0, axis.dataLim.x0))
    axis.set_title(title, fontsize=9, loc="left", color=_INK)
    axis.set_yticks(range(len(names)), names)


def _finish(figure: Figure, path: Path, handles: list[Any], labels: list[str]) -> None:
    bottom = 0.0
    if handles:
        height = figure.get_size_inches()[1]
        figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=8, frameon=False)
        bottom = 0.5 / height
    figure.tight_layout(rect=(0, bottom, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
