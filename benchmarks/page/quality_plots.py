"""Pictures of the quality study: each arm's figures against its FLOPs, BLiMP on the way, and what was varied."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks import rows
from benchmarks.rows import Row
from benchmarks.study.arms import AUXILIARY_STRENGTHS, CONTROL, LONG, MAIN, RATES, REFERENCE, STEADY, shorter
from benchmarks.study.verdicts import METRICS, collapsed, knows, spread

_FAINT = "#d9d9d9"
_LEAST_HEIGHT = 0.1
_COLOURS = {
    arm.name: matplotlib.colormaps["tab20"](2 * number % 20 + number // 10)
    for number, arm in enumerate((*MAIN, *CONTROL))
}
_LINES = {name: "-" if number < 10 else "--" for number, name in enumerate(_COLOURS)}  # ten colours, and ten pale ones
_MARKS = {name: "o" if number < 10 else "s" for number, name in enumerate(_COLOURS)}


def against_flops(found: Sequence[Row], path: Path) -> None:
    """ROC-AUC and BLiMP of the main arms' rows against TFLOPs: filled without, hollow with the auxiliary's training."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, metric in zip(axes, ("judge_auc", "blimp"), strict=True):
        title = METRICS[metric]
        for name, colour in _COLOURS.items():
            members = [row for row in found if row["arm"] == name and row.get(metric) is not None]
            if not members:
                continue
            values = [row[metric] for row in members]
            axis.scatter(
                [row["flops"] / 1e12 for row in members], values, color=colour, label=name, s=28, marker=_MARKS[name]
            )
            counted = [row for row in members if row["flops_auxiliary"]]
            axis.scatter(
                [row["flops_with_auxiliary"] / 1e12 for row in counted],
                [row[metric] for row in counted],
                facecolors="none",
                edgecolors=colour,
                s=40,
                marker=_MARKS[name],
            )
        _dress(axis, f"{title}, judged" if metric == "judge_auc" else title, "TFLOPs")
    figure.suptitle("filled: the run alone; hollow: with the training of its auxiliary model", fontsize=9)
    _save(figure, axes, path)


def curves(found: Sequence[Row], path: Path) -> None:
    """BLiMP (few pairs) and ROC-AUC on each run's own samples over the updates, a line for each main row."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, (metric, title) in zip(
        axes, {"roc_auc": "ROC-AUC, each on samples of its own", "blimp": "BLiMP, first pairs"}.items(), strict=True
    ):
        seen = set()
        for row in (row for row in found if row["arm"] in _COLOURS):
            points = [each for each in row["curve"] if metric in each]
            if points:
                name = row["arm"]
                label = None if name in seen else name
                seen.add(name)
                steps, values = [each["step"] for each in points], [each[metric] for each in points]
                axis.plot(steps, values, _LINES[name], color=_COLOURS[name], label=label, linewidth=1.2, marker=".")
        _dress(axis, title, "updates")
    _save(figure, axes, path)


def longer(found: Sequence[Row], path: Path) -> None:
    """Long arms beside the main arms of their names: ROC-AUC on the way, on samples of each run's own, and judged."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for arm in LONG:
        name = shorter(arm)
        for row in rows.select(found, "quality", arm=arm.name):
            points = [each for each in row["curve"] if "roc_auc" in each]
            steps, values = [each["step"] for each in points], [each["roc_auc"] for each in points]
            axes[0].plot(steps, values, color=_COLOURS[name], linewidth=1.2, marker=".")
        for each in (name, arm.name):
            members = rows.select(found, "quality", arm=each)
            at = [row["flops"] / 1e12 for row in members], [row["judge_auc"] for row in members]
            axes[1].scatter(*at, color=_COLOURS[name], s=28, label=name if each == name else None)
    _dress(axes[0], "ROC-AUC, each on samples of its own, four times the updates", "updates")
    _dress(axes[1], "ROC-AUC, judged, at both lengths", "TFLOPs of the run")
    _save(figure, axes, path)


def varied(found: Sequence[Row], path: Path) -> bool:
    """ROC-AUC against what the sampling model knows, and against the learning rate; False where nothing was varied."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    _strengths(axes[0], found)
    _rates(axes[1], found)
    drawn = any(axis.has_data() for axis in axes)
    if drawn:
        _save(figure, axes[1:], path)
    plt.close(figure)
    return drawn


def _strengths(axis: Axes, found: Sequence[Row]) -> None:
    for name in (REFERENCE, *(arm.name for arm in AUXILIARY_STRENGTHS)):
        judged, known = spread(found, name, "judge_auc"), knows(found, name)
        if judged.values and known.values:
            axis.scatter([100 * known.mean] * len(judged.values), judged.values, color="#1f77b4", s=28)
            at = (100 * known.mean, judged.mean)
            axis.annotate(_sampler(found, name), at, (-8, -13), textcoords="offset points", fontsize=7)
    axis.margins(x=0.15)
    if axis.has_data():  # no narrower than a difference that would matter
        middle, height = sum(axis.get_ylim()) / 2, max(_LEAST_HEIGHT, np.ptp(axis.get_ylim()))
        axis.set_ylim(middle - height / 2, middle + height / 2)
    _dress(
        axis,
        "ROC-AUC, judged: begun with one model's weights, sampled from another",
        "% of masked tokens the sampler predicts",
    )


def _sampler(found: Sequence[Row], arm: str) -> str:
    return str(next(row["auxiliary"] for row in found if row["arm"] == arm and row.get("auxiliary"))).removeprefix(
        "auxiliary_"
    )


def _rates(axis: Axes, found: Sequence[Row]) -> None:
    for name in (name for names in STEADY for name in names):
        judged = {rate: spread(found, f"{name}_x{rate}", "judge_auc") for rate in RATES}
        points = {rate: each.mean for rate, each in judged.items() if each.values}
        if points:
            style, colour = _LINES[name], _COLOURS[name]
            axis.plot(points.keys(), points.values(), style, color=colour, label=name, linewidth=1.2, marker=".")
        for rate, value in points.items():
            if any(map(collapsed, rows.select(found, "quality", arm=f"{name}_x{rate}"))):
                axis.scatter(rate, value, color=_COLOURS[name], marker="x", s=50)
    axis.set_xscale("log", base=2, subs=[])
    axis.set_xticks(RATES, [f"x{rate}" for rate in RATES])
    _dress(axis, "ROC-AUC, judged: half the updates (crosses: collapsed)", "peak learning rate")


def _dress(axis: Axes, title: str, label: str) -> None:
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel(label, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color=_FAINT, linewidth=0.6)
    axis.set_axisbelow(True)


def _save(figure: plt.Figure, axes: Sequence[Axes], path: Path) -> None:
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=6, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.02 + 0.045 * -(-len(handles) // 6), 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
