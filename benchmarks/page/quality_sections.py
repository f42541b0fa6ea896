"""The report's section on quality: the study's arms, the paper's claims beside them, and what each is worth.

Lines of Markdown from rows alone, as in cost_sections.py; it says what has not been run, and works with any part of it.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import rows
from benchmarks.page import quality_plots
from benchmarks.page.markdown import formulas, percent, table
from benchmarks.rows import Row
from benchmarks.study import arms, verdicts
from benchmarks.study.verdicts import Spread, spread

# The score of always giving the most frequent answer of GLUE's development sets.
_MOST_FREQUENT = {"CoLA": 0.0, "SST-2": 0.509, "MRPC": 0.748, "STS-B": 0.0, "RTE": 0.527}


def quality_section(found: Sequence[Row], folder: Path) -> list[str]:
    """Every scale that has rows, the largest first."""
    every = rows.select(found, "quality")
    lines = ["## Quality", ""]
    if not every:
        return [*lines, "No arm of the study has been run here: `make study` runs them.", ""]
    for scale in sorted({row["scale"] for row in every}, key=lambda name: arms.SCALES[name].tokens, reverse=True):
        lines += _scale(scale, [row for row in every if row["scale"] == scale], folder)
    return [*lines, *formulas(every)]


def _scale(scale: str, found: Sequence[Row], folder: Path) -> list[str]:
    """One scale: what was run, the main arms, the claims, the ablations, the pictures."""
    size, finished = arms.SCALES[scale], [row for row in found if "diverged" not in row]
    lines = [
        f"### {scale}",
        "",
        f"{size.layers} layers x {size.width}, rows of {size.length}, {size.steps:,} updates of {size.rows} rows "
        f"({size.tokens / 1e6:.2f} million tokens an arm unless said otherwise), {len(found)} rows so far. All are "
        "judged on the same held-out rows, masks and samples, of a masked LM that no arm was trained on. Ranges are "
        "those over seeds; a figure without one is of one seed. A seed changes weights, order, masks and noise, never "
        "the auxiliary model and the judge, with others of which figures differ by more than these ranges (LOG.md, "
        "rows that were withdrawn). What begins with the auxiliary model's weights, or samples from it, has its "
        f"training behind it ({2 * size.tokens / 1e6:.2f} million tokens; `frozen_warm_quarter` a quarter of that) "
        "besides its own; of the joint arms "
        "`joint_shallow_warm` alone, whose generator is that model trained further.",
        "",
    ]
    twin = {"encoder.num_layers": size.auxiliary_layers, "encoder.hidden_size": size.width}
    if twin.items() <= arms.JUDGE_SHAPE.items():
        lines += [
            "The judge is of the auxiliary model's shape, trained as long with another seed: arms that sample from "
            "that model are judged by its like, which joint training from new weights has not met.",
            "",
        ]
    if any(row.get("second_judge_auc") is not None for row in finished):
        lines += [
            f"The second judge is `{arms.SECOND_JUDGE[0]}`, of twice the depth, trained on the auxiliary model's order "
            "and masks: it asked those runs whose models were still at hand.",
            "",
        ]
    shared = any(row["machine_shared"] for row in finished)
    if shared:
        lines += ["The machine was shared with other work, so that nothing here is a timing.", ""]
    lines += _masked_lms(finished)
    lines += _mixed(finished)
    lines += _rounded(finished)
    lines += _main(found)
    lines += _fine_tuned(found)
    lines += _claims(found)
    lines += _cost(found)
    lines += _long(found, folder, scale)
    lines += _rates(found)
    lines += _ablations(found)
    if finished:
        quality_plots.against_flops(finished, folder / f"quality_{scale}.png")
        quality_plots.curves(finished, folder / f"curves_{scale}.png")
        lines += [f"![Quality against FLOPs](quality_{scale}.png)", ""]
        lines += ["Curves of ROC-AUC are each on the run's own samples, and do not compare between arms.", ""]
        lines += [f"![Curves](curves_{scale}.png)", ""]
        if quality_plots.varied(found, folder / f"varied_{scale}.png"):
            lines += [f"![What was varied](varied_{scale}.png)", ""]
    return lines


def _masked_lms(finished: Sequence[Row]) -> list[str]:
    """What the auxiliary models and the judge know."""
    known = [
        f"`{row['arm']}` predicts {percent(row['judge_accuracy'])} of held-out masked tokens after "
        f"{row['tokens'] / 1e6:.2f} million ({row['flops'] / 1e12:.2f} TFLOPs)"
        for row in rows.select(finished, "quality", group="auxiliary")
    ]
    return [f"The masked LMs behind it: {'; '.join(known)}.", ""] if known else []


def _begun_with(row: Row) -> str:
    """What an arm began with; joint ones take, and know by its hash, the whole masked LM."""
    name = arms.ARMS[row["arm"]].begins or row.get("auxiliary") or ""
    return f"{name} and its head" if row["objective"].startswith("joint") else f"the encoder of {name}"


def _mixed(finished: Sequence[Row]) -> list[str]:
    """A warning where a masked LM that rows share was made anew meanwhile and came out with other weights."""
    seen: dict[str, set[str]] = {}
    for row in finished:
        shared = (
            ("judge", row.get("judge_weights")),
            ("the second judge", row.get("second_judge_weights")),
            (row.get("auxiliary"), row.get("auxiliary_weights")),
            (_begun_with(row), row.get("initial_weights")),
        )
        for model, weights in shared:
            if model and weights:
                seen.setdefault(model, set()).add(weights)
    mixed = [f"`{model}` ({len(weights)} times)" for model, weights in sorted(seen.items()) if len(weights) > 1]
    if not mixed:
        return []
    return [f"**Not all rows compare**, because they do not share their masked LMs: {', '.join(mixed)}.", ""]


def _rounded(finished: Sequence[Row]) -> list[str]:
    """In which numbers the rows were computed, where those of half the width were summed in it."""
    half = [
        row for row in finished if row.get("dtype") == "bfloat16" and (row.get("hardware") or {}).get("gpu") is None
    ]
    rounded = sum(row.get("token_sums") != "float32" for row in half)
    if not rounded:
        return []
    return [
        f"**{rounded} of {len(finished)} rows lost part of their gradients.** They were computed in bfloat16 on CPUs "
        "by code that left the gradients of norms and token tables to torch's kernels, which add them in bfloat16. It "
        "was so for all arms alike; LOG.md, 2026-11-27, has how much was lost, and a control in float32. The rest "
        f"({len(finished) - rounded}) is computed in float32, or summed in it.",
        "",
    ]


def _main(found: Sequence[Row]) -> list[str]:
    """A line for each main arm and for the control."""
    present = [arm for arm in (*arms.MAIN, *arms.CONTROL) if rows.select(found, "quality", arm=arm.name)]
    names = ("judge_auc", "second_judge_auc", "judge_accuracy", "blimp")
    head = ("arm", "seeds", "ROC-AUC, judged", "second judge", "loss / floor", "masked tokens predicted", "BLiMP")
    content = []
    for arm in present:
        members = rows.select(found, "quality", arm=arm.name)
        losses = [row["judge_loss"] / row["floor"] for row in members if row.get("floor") is not None]
        judged, again, predicted, blimp = (spread(found, arm.name, name) for name in names)
        bad = sum(map(verdicts.collapsed, members))
        content.append(
            (
                arm.name,
                len(members),
                judged,
                again,
                Spread(tuple(losses)),
                predicted,
                blimp,
                f"{bad} of {len(members)}",
            )
        )
    missing = [arm.name for arm in (*arms.MAIN, *arms.CONTROL) if arm not in present]
    lines = table(1, (*head, "collapsed"), content)
    rule = f"a loss above {percent(verdicts.COLLAPSED)} of the majority-class floor, ROC-AUC below {verdicts.UNRANKED}"
    lines += [f"Collapsed: diverged, or {rule}.", ""]
    return [*lines, *([f"Not run yet: {', '.join(missing)}.", ""] if missing else [])]


def _fine_tuned(found: Sequence[Row]) -> list[str]:
    """GLUE's tasks, where rows have them."""
    tuned = [row for row in found if row.get("glue")]
    if not tuned:
        return ["None of these rows is fine-tuned: `--glue FOLDER` does it.", ""]
    names = list(tuned[0]["glue"])
    content: list[tuple[object, ...]] = []
    present = {row["arm"] for row in tuned}
    for arm in (each.name for each in (*arms.MAIN, *arms.CONTROL) if each.name in present):
        members = [row for row in tuned if row["arm"] == arm]
        figures = (Spread(tuple(row["glue"][name] / 100 for row in members if name in row["glue"])) for name in names)
        content.append((arm, len(members), *figures))
    content.append(("*the most frequent answer*", "", *(f"{_MOST_FREQUENT[name]:.3f}" for name in names)))
    lines = [
        "#### Fine-tuned",
        "",
        "The task's score over 100 (CoLA: Matthews' correlation; SST-2 and RTE: accuracy; MRPC: mean of F1 and "
        "accuracy; STS-B: mean of two correlations); one fine-tuning of each run, on few rows (2,000 a task). No "
        "claim is judged by them.",
        "",
    ]
    return [*lines, *table(1, ("arm", "seeds", *names), content)]


def _claims(found: Sequence[Row]) -> list[str]:
    """The paper's claims of quality."""
    content = [
        (claim.words, verdicts.METRICS[metric], f"{claim.method} {method}", f"{claim.rival} {rival}", said)
        for claim, metric, method, rival, said in verdicts.judged(found)
    ]
    lines = ["#### The paper's claims", "", verdicts.RULE, ""]
    if not content:
        return [*lines, "No claim has rows of both its arms yet.", ""]
    return [*lines, *table(5, ("claim", "by", "ours", "beside it", "verdict"), content)]


def _cost(found: Sequence[Row]) -> list[str]:
    """FLOPs of each main arm, the auxiliary model's training counted and not counted."""
    content = []
    base = [row for row in rows.select(found, "quality", arm="joint_shallow") if "flops" in row]
    for arm in arms.MAIN:
        members = [row for row in rows.select(found, "quality", arm=arm.name) if "flops" in row]
        if members:
            row = members[0]
            ratios = [
                percent(row[name] / base[0]["flops"]) if base else "-" for name in ("flops", "flops_with_auxiliary")
            ]
            content.append((arm.name, f"{row['flops'] / 1e12:.2f}", f"{row['flops_auxiliary'] / 1e12:.2f}", *ratios))
    head = ("arm", "TFLOPs of the run", "of its auxiliary model", "of joint_shallow's", "auxiliary counted")
    said = (
        "`replay`'s pass covers the whole corpus once, more rows than one such run reads: it serves any number of runs."
    )
    return ["#### FLOPs", "", said, "", *table(1, head, content)] if content else []


def _long(found: Sequence[Row], folder: Path, scale: str) -> list[str]:
    """What four times the updates give from new weights, beside the main arms of the same names."""
    trained = [row for row in found if "diverged" not in row]
    if not rows.select(trained, "quality", group="long"):
        return []
    content = []
    for name in (name for arm in arms.LONG for name in (arms.shorter(arm), arm.name)):
        members = rows.select(trained, "quality", arm=name)
        if members:
            tokens, *flops = (members[0][key] for key in ("tokens", "flops", "flops_with_auxiliary"))
            losses = Spread(tuple(row["judge_loss"] / row["floor"] for row in members))
            figures = (spread(trained, name, metric) for metric in ("judge_auc", "second_judge_auc", "blimp"))
            spent = (f"{each / 1e12:.1f}" for each in flops)
            content.append((name, len(members), f"{tokens / 1e6:.1f}", *spent, losses, *figures))
    head = ("arm", "seeds", "million tokens", "TFLOPs", "with the auxiliary model's", "loss / floor")
    picture = f"long_{scale}.png"
    quality_plots.longer(trained, folder / picture)
    return [
        "#### Four times as long, from new weights",
        "",
        "The same weights, order and masks at the start, temperatures and rates stretched over the whole, layers "
        "compiled. The claims above name them.",
        "",
        *table(1, (*head, "ROC-AUC, judged", "second judge", "BLiMP"), content),
        f"![Four times as long]({picture})",
        "",
    ]


def _rates(found: Sequence[Row]) -> list[str]:
    """Learning rates times 1 to 8: the judged ROC-AUC, and what collapsed."""
    tried = rows.select(found, "quality", group="rate")
    if not tried:
        return []
    content, steadiness = [], []
    for names in arms.STEADY:
        present = [name for name in names if any(row["arm"].startswith(f"{name}_x") for row in tried)]
        for name in present:
            cells = []
            for rate in arms.RATES:
                of = rows.select(tried, "quality", arm=f"{name}_x{rate}")
                cells.append(_rate_cell(of[0]) if of else "not run")
            content.append((name, *cells))
        steadiness += _steadiness(tried, *names[:2])
    lines = [
        "#### Learning rates",
        "",
        "ROC-AUC, judged, and loss / floor, after half the updates at the main arms' peak rate times 1 to 8; one "
        "seed, so that nothing is concluded from small differences.",
        "",
    ]
    return [*lines, *table(1, ("arm", *(f"x{rate}" for rate in arms.RATES)), content), *steadiness]


def _steadiness(tried: Sequence[Row], frozen: str, joint: str) -> list[str]:
    """The paper's claim of steadier training, as far as one seed tells."""
    ours, theirs = (verdicts.highest_rate(tried, name) for name in (frozen, joint))
    if ours is None or theirs is None:
        return []
    if ours == theirs:
        said = "no difference seen" + (", at all rates tried" if ours == arms.RATES[-1] else "")
    else:
        said = f"so far it {verdicts.HOLDS if ours > theirs else verdicts.FAILS}"
    return [
        "Steadier training than joint, by the highest of these rates up to which no run collapsed "
        f"(`{frozen}` x{ours}, `{joint}` x{theirs}): {said}, by one seed, which settles nothing.",
        "",
    ]


def _rate_cell(row: Row) -> str:
    if "diverged" in row:
        return "diverged"
    told = f"{row['judge_auc']:.3f}, {row['judge_loss'] / row['floor']:.3f}"
    return told + (" (collapsed)" if verdicts.collapsed(row) else "")


_SAMPLER = "What differs is the model that samples; all begin with the weights of `auxiliary`."


def _ablations(found: Sequence[Row]) -> list[str]:
    """Schedules and auxiliary models beside the schedule that is the default."""
    lines: list[str] = []
    for group, title in (("schedule", "Schedules"), ("strength", "Auxiliary models")):
        tried = {row["arm"]: row for row in rows.select(found, "quality", group=group)}
        if not tried:
            continue
        broken = [arm for arm, row in tried.items() if "diverged" in row]
        beside = {row["arm"]: row for row in rows.select(found, "quality", arm=arms.REFERENCE)}
        descending = [arm for arm in beside | tried if not arm.startswith("constant")]
        spreads = [spread(found, arm, "judge_auc") for arm in descending]
        noise = max(spreads, key=lambda each: (len(each.values) > 1, each.range), default=Spread(()))
        means = Spread(tuple(each.mean for each in spreads))
        said = verdicts.FAILS if broken else verdicts.insensitive(noise, means)
        seeds = f" (largest range over seeds: {noise.range:.3f})" if len(noise.values) > 1 else ""
        content = (
            (
                arm,
                percent(known.mean) if (known := verdicts.knows(found, arm)).values else "-",
                *(spread(found, arm, metric) for metric in ("judge_auc", "blimp")),
            )
            for arm in beside | tried
        )
        lines += [
            f"#### {title}",
            "",
            "Begun with the weights of `auxiliary`, half the updates; one seed where no range is given. Little "
            f"sensitivity to these, constant temperatures left out, by ROC-AUC: {said} (means range over "
            f"{means.range:.3f}){seeds}. {verdicts.INSENSITIVE}",
            "",
            *([f"Diverged, and counted as chance: {', '.join(broken)}.", ""] if broken else []),
            *([_SAMPLER, ""] if group == "strength" else []),
            *table(1, ("arm", "auxiliary model predicts", "ROC-AUC, judged", "BLiMP"), content),
        ]
    return lines
