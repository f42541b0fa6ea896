"""What the paper claims of quality, and what we add, and whether our rows bear it out, by one rule for all.

d is the difference of two arms' means, s the larger of their ranges over seeds, and at least MARGIN. With fewer than
two seeds of either arm nothing is said, and neither where both arms' means are within MARGIN of chance: two models that
have learned nothing are not on a par. A claim holds where d > s and does not hold where d < -s. Elsewhere "at least as
good" holds, and "better" does not, where neither |d| nor a range is more than MARGIN; the rest is too noisy to tell.

Ablations have few seeds an arm. The figure is insensitive to what they vary where the range of their means is no more
than MARGIN, or than the largest range of one of them over its seeds where that is quiet; it is sensitive where it is
more than three times that, or where a setting diverged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks import rows
from benchmarks.rows import Row
from benchmarks.study import arms

MARGIN = 0.01
CHANCE = 0.5  # of ROC-AUC and of BLiMP
_QUIET = 2 * MARGIN + 1e-9  # more than that over seeds, and nothing can be said to make no difference
# BLiMP of discriminators that have learned next to nothing lies this far from chance (22 of them: .479 to .515).
AT_CHANCE = {"blimp": 0.03}
# A loss above this share of the majority-class floor with a ROC-AUC below this has learned next to nothing. Either
# alone tells less: trained on another replaced share than the judge's, a discriminator ranks well at a high loss.
COLLAPSED, UNRANKED = 0.99, 0.55
HOLDS, FAILS, NOISY, FEW = "holds", "does not hold", "too noisy to tell", "too few seeds to tell"
NOTHING = "both at chance: nothing to compare"
METRICS = {"judge_auc": "ROC-AUC", "second_judge_auc": "ROC-AUC, second judge", "blimp": "BLiMP"}
RULE = (
    f"d: difference of the two arms' means over seeds, s: the larger of their ranges (max - min), at least {MARGIN}. A "
    "claim holds where d > s and does not hold where d < -s. Elsewhere *at least as good* holds, and *better* does "
    f"not, where neither |d| nor a range is more than {MARGIN}; the rest is too noisy to tell. With fewer than two "
    f"seeds of either arm, or both means within {MARGIN} of chance (BLiMP: {AT_CHANCE['blimp']}), nothing is said. A "
    f"run that diverged counts as chance ({CHANCE}). Of two arms that do not differ, the first is taken for better in "
    "2.5 % of cases with three seeds each, 5.3 % with three and two, 10.7 % with two each (normal noise, simulated; up "
    "to 4, 15 and 15 % where one arm varies far less than the other), each line by itself."
)
INSENSITIVE = (
    f"Little sensitivity holds where the range of the means is no more than {MARGIN}, or than the largest range of one "
    f"setting over its seeds where that is no more than {2 * MARGIN}; it does not hold where it is more than three "
    "times as much, or where a setting diverged."
)


@dataclass(frozen=True)
class Claim:
    """`method` is claimed to be at least as good as `rival`, or `better`."""

    words: str
    method: str
    rival: str
    better: bool = False


CLAIMS = (
    Claim("on a par with joint training (METRO's generator)", "frozen", "joint_shallow"),
    Claim("the same, ours begun with the auxiliary model's weights", "frozen_warm", "joint_shallow"),
    Claim("the same, both begun with the auxiliary model's weights", "frozen_warm", "joint_shallow_warm"),
    Claim(
        "better than joint training, at fewer FLOPs with its auxiliary model's counted (ours)",
        "frozen_warm_quarter",
        "joint_shallow",
        True,
    ),
    Claim("the same, from new weights, after four times the updates", "frozen_long", "joint_shallow_long"),
    Claim("on a par with joint training (generator of full size)", "frozen", "joint"),
    Claim("on a par with DeBERTaV3's joint training", "frozen", "joint_gdes"),
    Claim("a descending temperature is better than T = 1 throughout (two-stage)", "frozen", "two_stage", True),
    Claim("the same, both begun with the auxiliary model's weights", "frozen_warm", "two_stage_warm", True),
    Claim("the same, from new weights, after four times the updates", "frozen_long", "two_stage_long", True),
    Claim(
        "beginning with the auxiliary model's weights is better than with new ones (ours)",
        "frozen_warm",
        "frozen",
        True,
    ),
    Claim("replacement paths prepared offline lose nothing", "replay", "frozen"),
    Claim("a model's samples are better than a unigram statistic's", "frozen", "unigram", True),
    Claim("the same, both begun with the auxiliary model's weights", "frozen_warm", "unigram_warm", True),
    Claim("a model's samples are better than random words", "frozen", "random", True),
)


@dataclass(frozen=True)
class Spread:
    """A figure of one arm over its seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean."""
        return mean(self.values)

    @property
    def range(self) -> float:
        """Largest less smallest."""
        return max(self.values) - min(self.values)

    def __str__(self) -> str:
        if not self.values:
            return "-"
        ends = f" ({min(self.values):.3f} to {max(self.values):.3f})" if len(self.values) > 1 else ""
        return f"{self.mean:.3f}{ends}"


def spread(found: Sequence[Row], arm: str, metric: str) -> Spread:
    """The metric of an arm's rows, in the order of seeds; rows without it are left out.

    A run that diverged has learned nothing: chance, where the metric has one.
    """
    members = sorted(rows.select(found, "quality", arm=arm), key=lambda row: row["seed"])
    each = (CHANCE if "diverged" in row and metric in METRICS else row.get(metric) for row in members)
    return Spread(tuple(value for value in each if value is not None))


def knows(found: Sequence[Row], arm: str) -> Spread:
    """What the judging of its auxiliary model found: one share of held-out masked tokens for all arms that share it."""
    names = {row.get("auxiliary") or "" for row in rows.select(found, "quality", arm=arm)} - {""}
    return spread(found, min(names, default=""), "judge_accuracy")


def verdict(method: Spread, rival: Spread, better: bool, at_chance: float = MARGIN) -> str:
    """By the rule above; a mean no more than `at_chance` above it is at chance."""
    if min(len(method.values), len(rival.values)) < 2:
        return FEW
    if max(method.mean, rival.mean) <= CHANCE + at_chance:
        return NOTHING
    difference, noise = method.mean - rival.mean, max(method.range, rival.range, MARGIN)
    if abs(difference) > noise:
        return HOLDS if difference > 0 else FAILS
    if noise == MARGIN:
        return FAILS if better else HOLDS
    return NOISY


def insensitive(reference: Spread, varied: Spread) -> str:
    """Whether a figure does not hang on what was varied, by the rule above; `varied` has one value for each setting."""
    if len(reference.values) < 2 or len(varied.values) < 2:
        return FEW
    if max(reference.mean, varied.mean) <= CHANCE + MARGIN:
        return NOTHING
    noise = max(reference.range, MARGIN)
    if varied.range <= noise:
        return HOLDS if noise <= _QUIET else NOISY
    return FAILS if varied.range > 3 * noise else NOISY


def judged(found: Sequence[Row]) -> list[tuple[Claim, str, Spread, Spread, str]]:
    """(claim, metric, the method's figure, the rival's, verdict) for every claim of which both arms have rows."""
    made = []
    for claim in CLAIMS:
        for metric in METRICS:
            method, rival = (spread(found, arm, metric) for arm in (claim.method, claim.rival))
            if method.values and rival.values:
                near = AT_CHANCE.get(metric, MARGIN)
                made.append((claim, metric, method, rival, verdict(method, rival, claim.better, near)))
    return made


def collapsed(row: Row) -> bool:
    """Whether a discriminator diverged, or learned next to nothing beyond the majority class."""
    floor = row.get("floor")  # a masked LM has none
    if "diverged" in row or floor is None:
        return "diverged" in row
    return bool(row["judge_loss"] > COLLAPSED * floor and row["judge_auc"] < UNRANKED)


def highest_rate(found: Sequence[Row], main_arm: str) -> int | None:
    """The highest multiple of the peak learning rate up to which none of a main arm's runs collapsed.

    0 where the lowest did; None where one was not tried, up to that at which one did.
    """
    highest = 0
    for rate in arms.RATES:
        members = rows.select(found, "quality", arm=f"{main_arm}_x{rate}")
        if not members:
            return None
        if any(map(collapsed, members)):
            return highest
        highest = rate
    return highest
