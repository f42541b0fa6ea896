"""The arms of the quality study, as a table: what each trains, on which auxiliary model, how long, in which order.

All arms of a scale share encoder, corpus, rows, updates, optimizer and, for one seed, weights, order and masks; they
differ in what their line says. One `seed` governs all of these at once. The auxiliary models have a seed of their own
(`AUXILIARY_SEED`), so that none has met the masks of the rows it is asked about, and twice the rows an update, because
a discriminator learns nothing from one that is not past the unigram plateau; all seeds of an arm share one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from fast_electra.settings.require import did_you_mean

AUXILIARY_SEED = 200
# A masked LM that no discriminator is trained on. At 4x128 it is the auxiliary model's twin, another seed aside.
JUDGE = ("judge", 100)
# Another, of twice the auxiliary model's depth, that asks the main arms again; of all arms frozen_deep alone knows it.
SECOND_JUDGE = ("auxiliary_deep", AUXILIARY_SEED)


@dataclass(frozen=True)
class Scale:
    """The size of a study: an encoder, its auxiliary model's depth (full width), rows and updates."""

    layers: int
    auxiliary_layers: int
    width: int
    heads: int
    intermediate: int
    length: int
    steps: int
    rows: int
    rate: float
    held_out_rows: int
    blimp_pairs: int  # of each paradigm

    @property
    def tokens(self) -> int:
        """Tokens of an arm that runs its full length."""
        return self.steps * self.rows * self.length

    def settings(self) -> dict[str, object]:
        """What all arms of this scale share, as launchers/pretrain.py takes it."""
        return {
            "recipe": "demo",
            "data.sequence_length": self.length,
            "data.held_out_rows": self.held_out_rows,
            "encoder.hidden_size": self.width,
            "encoder.num_heads": self.heads,
            "encoder.max_positions": max(128, self.length),
            "generator.depth_divisor": self.layers // self.auxiliary_layers,
            "run.keep_checkpoints": 1,
        }


SCALES = {
    # For two cores without bfloat16 instructions: minutes an arm.
    "2x96": Scale(2, 1, 96, 4, 256, 64, 2_000, 16, 1.5e-3, 512, 100),
    # For two cores with them, one an arm: a quarter of an hour an arm. Half as long leaves a discriminator at AUC .57.
    "4x128": Scale(4, 2, 128, 4, 352, 64, 5_000, 32, 1.5e-3, 1024, 200),
    # The same, on both: ten to twenty minutes an arm.
    "4x192": Scale(4, 2, 192, 4, 512, 64, 2_500, 64, 1.5e-3, 1024, 200),
    # For a GPU; has not been run.
    "12x256": Scale(12, 4, 256, 4, 704, 128, 50_000, 128, 5e-4, 1024, 1000),
}


@dataclass(frozen=True)
class Arm:
    """One line of the study. `share`, `rate` and `rows` multiply the scale's updates, peak rate and rows an update.

    `auxiliary` names the arm whose export it samples from, `begins` the one whose weights it begins with where it
    samples from another or none; `settings` are overrides of launchers/pretrain.py.
    """

    name: str
    group: str
    objective: str
    auxiliary: str = ""
    begins: str = ""
    share: float = 1.0
    rate: float = 1.0
    rows: int = 1
    depth: str = "full"  # or "auxiliary", or "half_auxiliary", which is the same where that has one layer
    settings: dict[str, object] = field(default_factory=dict)


_WARM: dict[str, object] = {"initial_weights": "auxiliary"}


_ELECTRA: dict[str, object] = {
    "encoder.model_type": "electra",
    "encoder.dropout": 0.1,
    "encoder.attention_dropout": 0.1,
    "optimizer.peak_learning_rate": 5e-4,
    "optimizer.beta2": 0.999,
}
JUDGE_SHAPE: dict[str, object] = {
    "encoder.num_layers": 2,
    "encoder.hidden_size": 128,
    "encoder.num_heads": 4,
    "encoder.intermediate_size": 352,
}
RATES = (1, 2, 4, 8)
# Which is compared with which, from new weights and begun with the auxiliary model's.
STEADY = (("frozen", "joint_shallow", "two_stage"), ("frozen_warm", "joint_shallow_warm", "two_stage_warm"))

AUXILIARIES = (
    Arm("auxiliary", "auxiliary", "mlm", depth="auxiliary", rows=2),
    # One shape whatever the scale.
    Arm("judge", "auxiliary", "mlm", rows=2, settings=JUDGE_SHAPE),
    Arm("auxiliary_half", "auxiliary", "mlm", depth="auxiliary", share=0.5, rows=2),
    Arm("auxiliary_quarter", "auxiliary", "mlm", depth="auxiliary", share=0.25, rows=2),
    Arm("auxiliary_deep", "auxiliary", "mlm", rows=2),
    Arm("auxiliary_shallow", "auxiliary", "mlm", depth="half_auxiliary", rows=2),
)
MAIN = (
    Arm("frozen", "main", "frozen", "auxiliary"),
    Arm("two_stage", "main", "two_stage", "auxiliary"),
    Arm("joint_shallow", "main", "joint_shallow"),
    # Begun with the auxiliary model's weights, as ELECTRA's two-stage training is, or with its embeddings alone.
    Arm("frozen_warm", "main", "frozen", "auxiliary", settings=_WARM),
    Arm("two_stage_warm", "main", "two_stage", "auxiliary", settings=_WARM),
    Arm("frozen_embeddings", "main", "frozen", "auxiliary", settings=_WARM | {"initial_layers": 0}),
    # On, and begun with, an auxiliary model trained for a quarter as long: cheaper than joint training, all counted.
    Arm("frozen_warm_quarter", "main", "frozen", "auxiliary_quarter", settings=_WARM),
    # The joint twin of frozen_warm: its generator is the auxiliary model, trained further.
    Arm("joint_shallow_warm", "main", "joint_shallow", begins="auxiliary"),
    Arm("mlm", "main", "mlm"),
    Arm("random", "main", "random"),
    # Stock ModernBERT takes no narrower generator with tied embeddings: this one is as wide and deep as the main model.
    Arm("joint", "main", "joint", settings={"generator.width_divisor": 1}),
    Arm("unigram", "main", "unigram"),
    Arm("unigram_warm", "main", "unigram", begins="auxiliary"),
    Arm("joint_gdes", "main", "joint_gdes"),
    Arm("replay", "main", "replay", "auxiliary"),
)


def _schedule(name: str, schedule: str, **settings: float) -> Arm:
    chosen = {"schedule": schedule, **settings}
    settings_of_it = _WARM | {f"temperature.{key}": value for key, value in chosen.items()}
    return Arm(name, "schedule", "frozen", "auxiliary", share=0.5, settings=settings_of_it)


# Ablations begin with the auxiliary model's weights: differences show after half the updates. From new weights a whole
# arm has hardly left the plateau (judged ROC-AUC of three seeds: .587 to .588; begun so: .740 to .743).
REFERENCE = "exponential_2_0.1"
CONTENDER = "exponential_2_0.3"  # the nearest that seemed better with one seed
_CROSS = ((2.0, 0.1), (2.0, 0.05), (2.0, 0.3), (1.5, 0.1), (4.0, 0.1))
_CORNERS = ((4.0, 0.3), (4.0, 0.05), (1.5, 0.3), (1.5, 0.05))


def _exponential(initial: float, tau: float) -> Arm:
    return _schedule(f"exponential_{initial:g}_{tau:g}", "exponential", initial=initial, tau=tau)


SCHEDULES = (
    *(_exponential(initial, tau) for initial, tau in _CROSS),
    _schedule("constant_1", "constant", initial=1.0),
    _schedule("linear", "linear"),
    *(_exponential(initial, tau) for initial, tau in _CORNERS[:1]),
    _schedule("constant_2", "constant"),
    _schedule("polynomial", "polynomial"),
    *(_exponential(initial, tau) for initial, tau in _CORNERS[1:]),
)
AUXILIARY_STRENGTHS = tuple(
    Arm(f"frozen_{strength}", "strength", "frozen", f"auxiliary_{strength}", begins="auxiliary", share=0.5)
    for strength in ("quarter", "half", "deep", "shallow")
)
_BY_NAME = {arm.name: arm for arm in MAIN}
STABILITY = tuple(
    replace(_BY_NAME[name], name=f"{name}_x{rate}", group="rate", share=0.5, rate=rate)
    for names in STEADY
    for rate in RATES
    for name in names
)
CONTROL = (
    Arm("electra_frozen", "control", "frozen", "auxiliary", settings=_ELECTRA),
    Arm("electra_joint", "control", "joint", settings=_ELECTRA | {"generator.width_divisor": 4}),
)
# From new weights an arm's length hardly leaves the plateau; these run on, compiled, which pays at this length.
LONG = tuple(
    replace(_BY_NAME[name], name=f"{name}_long", group="long", share=4.0, settings={"run.compile": True})
    for name in STEADY[0]
)
_TABLES = (AUXILIARIES, MAIN, SCHEDULES, AUXILIARY_STRENGTHS, STABILITY, CONTROL, LONG)
ARMS = {arm.name: arm for table in _TABLES for arm in table}

# What is run in which order: (arms, seeds), seed by seed. Main arms and their seeds come before ablations.
_FIRST = ("frozen", "joint_shallow", "frozen_warm")
_SECOND = ("two_stage", "two_stage_warm")
_THIRD = ("joint_shallow_warm", "unigram_warm")
_FOURTH = ("frozen_warm_quarter",)
_OTHERS = tuple(arm.name for arm in MAIN if arm.name not in (*_FIRST, *_SECOND, *_THIRD, *_FOURTH))
ROUNDS: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...] = (
    (("auxiliary",), (AUXILIARY_SEED,)),
    ((JUDGE[0],), (JUDGE[1],)),
    (_FIRST, (0, 1, 2)),
    (_SECOND, (0, 1)),
    ((REFERENCE, CONTENDER), (0, 1, 2)),
    (tuple(arm.name for arm in SCHEDULES if arm.name not in (REFERENCE, CONTENDER)), (0,)),
    (_SECOND, (2,)),
    (_THIRD, (0, 1, 2)),
    (_OTHERS, (0,)),
    (tuple(arm.name for arm in STABILITY), (0,)),
    (tuple(arm.name for arm in AUXILIARIES[2:]), (AUXILIARY_SEED,)),
    (_FOURTH, (0, 1, 2)),
    (tuple(arm.name for arm in (*AUXILIARY_STRENGTHS, *CONTROL)), (0,)),
    (_OTHERS, (1, 2)),
    (tuple(arm.name for arm in LONG), (0, 1, 2)),
)


def plan(only: Sequence[str] = (), seeds: Sequence[int] = ()) -> Iterator[tuple[Arm, int]]:
    """(arm, seed) in the order in which they are run.

    With `only`, those arms and what they are made with; with `seeds`, those seeds alone, masked LMs keeping their own.

    Raises ValueError for an unknown arm, naming the nearest known, and for a seed that no arm has.
    """
    known = {seed for _, of_it in ROUNDS for seed in of_it}
    if unknown := set(seeds) - known:
        raise ValueError(f"no arm has seed {min(unknown)}: choose of {', '.join(map(str, sorted(known)))}")
    for name in only:
        if name not in ARMS:
            near = did_you_mean(name, ARMS)
            raise ValueError(f"{name!r} is no arm of the study: {near}choose of {', '.join(ARMS)}")
    wanted = set(only) | {made_with for name in only for made_with in masked_lms(ARMS[name])}
    for names, of_it in ROUNDS:
        for seed in of_it:
            for arm in map(ARMS.__getitem__, names):
                named = not only or arm.name in wanted or (arm.name, seed) == JUDGE
                if named and (not seeds or seed in seeds or arm.group == "auxiliary"):
                    yield arm, seed


def shorter(arm: Arm) -> str:
    """The main arm that a long one goes on from the length of."""
    return arm.name.removesuffix("_long")


def masked_lms(arm: Arm) -> set[str]:
    """The arms whose exports it samples from and begins with."""
    return {arm.auxiliary, arm.begins} - {""}


def overrides(arm: Arm, seed: int, scale: Scale) -> dict[str, object]:
    """The arm's settings for launchers/pretrain.py; folders and models are left to the study."""
    depths = {"full": scale.layers, "auxiliary": scale.auxiliary_layers, "half_auxiliary": scale.auxiliary_layers // 2}
    layers = max(1, depths[arm.depth])
    steps = round(scale.steps * arm.share)
    electra = arm.settings.get("encoder.model_type") == "electra"
    return {
        **scale.settings(),
        "objective": arm.objective,
        "seed": seed,
        "encoder.num_layers": layers,
        "encoder.intermediate_size": 4 * scale.width if electra else scale.intermediate,
        "optimizer.peak_learning_rate": scale.rate * arm.rate,
        "run.steps": steps,
        "run.batch_rows": scale.rows * arm.rows,
        "run.micro_batch_rows": scale.rows * arm.rows,
        "run.evaluate_every": max(1, scale.steps // 4),
        "run.save_every": max(1, scale.steps // 10),
        **arm.settings,
    }
