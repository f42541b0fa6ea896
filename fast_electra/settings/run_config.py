"""The part of a run's config that says how it trains: optimizer, length, batch and rhythm."""

import math
from dataclasses import dataclass
from typing import Literal

from fast_electra.settings.require import require, require_each, require_one_of

DTYPES = ("auto", "bfloat16", "float32")
ON_NAN = ("stop", "skip")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up over `warmup_ratio` of the steps and linear decay to 0.

    Gradients are cut to a norm of `clip_norm` (0: never). Biases and norms have no `weight_decay`. `epsilon` stands
    beside the root of Adam's second moment; auto is 1e-6 or, where the replaced-token loss stands alone, as much less
    as that loss counts more in joint training (Config.epsilon_for).
    """

    peak_learning_rate: float = 4e-4
    warmup_ratio: float = 0.08
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float | Literal["auto"] = "auto"
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        rate, remedy = self.peak_learning_rate, "give a number above 0, such as 4e-4"
        require(0 < rate < math.inf, "optimizer.peak_learning_rate", rate, remedy)
        shares = ("warmup_ratio", "beta1", "beta2")
        require_each("optimizer", self, shares, lambda share: 0 <= share < 1, "give a share from 0 up to 1")
        positive = 0 < self.epsilon < math.inf if isinstance(self.epsilon, float | int) else self.epsilon == "auto"
        require(positive, "optimizer.epsilon", self.epsilon, "give a number above 0, such as 1e-6, or auto")
        limits, remedy = ("weight_decay", "clip_norm"), "give a number of at least 0; 0 means none"
        require_each("optimizer", self, limits, lambda limit: 0 <= limit < math.inf, remedy)


@dataclass(frozen=True)
class RunConfig:
    """Length, batch and rhythm. `batch_rows` is global; `micro_batch_rows` is what one process takes at a time.

    Numbers are logged, held-out rows evaluated and checkpoints saved every so many steps (`log_every`,
    `evaluate_every`, `save_every`). Where `save_minutes` of training have passed since the last checkpoint, one is made
    at the next step that is logged (0: never). The last `keep_checkpoints` stay, and of those at `save_every` the ones
    at multiples of `keep_every` steps (0: none). `stop_at_step` ends a start early, saved (0: no). `dtype` is bfloat16,
    float32, or auto: bfloat16 where the hardware multiplies it. `compile` sends the model through torch.compile, layer
    by layer; auto does so on a GPU, and on a CPU for a long run (choices.py). `activation_checkpointing` keeps a
    layer's input alone and computes the rest again in backward: memory for time. `blimp`, a folder of BLiMP files, adds
    its accuracy to evaluations, on `blimp_pairs` of a paradigm (0: all).

    An update whose loss or gradient is not finite is never made; `on_nan` says whether the run then stops, after the
    next update or sooner, or leaves up to `max_skipped` of them out. A loss at the majority-class floor for
    `floor_patience` steps stops it too, 0 means never. Losses `spike_deviations` standard deviations above their
    running mean are written down with their rows, 0 means none. A process without progress for `hang_minutes`, starting
    or training, ends itself, 0 means never.
    """

    steps: int = 125_000
    batch_rows: int = 2048
    micro_batch_rows: int = 64
    log_every: int = 100
    evaluate_every: int = 5_000
    save_every: int = 5_000
    save_minutes: float = 20.0
    keep_checkpoints: int = 2
    keep_every: int = 0
    compile: bool | Literal["auto"] = "auto"
    activation_checkpointing: bool = False
    stop_at_step: int = 0
    dtype: str = "auto"
    blimp: str = ""
    blimp_pairs: int = 20
    on_nan: str = "stop"
    max_skipped: int = 100
    floor_patience: int = 0
    spike_deviations: float = 6.0
    hang_minutes: float = 20.0

    def __post_init__(self) -> None:
        rhythm = ("log_every", "evaluate_every", "save_every", "keep_checkpoints")
        counts = ("steps", "batch_rows", "micro_batch_rows", *rhythm)
        require_each("run", self, counts, lambda count: count >= 1, "give a whole number of at least 1")
        require_one_of(DTYPES, "run.dtype", self.dtype)
        require_one_of(ON_NAN, "run.on_nan", self.on_nan)
        minutes = ("hang_minutes", "save_minutes")
        limits = (*minutes, "max_skipped", "floor_patience", "spike_deviations", "keep_every", "blimp_pairs")
        require_each("run", self, limits, lambda limit: limit >= 0, "give 0 or more")

    @property
    def keeps_every(self) -> int:
        """Every how many steps a checkpoint stays for good, 0 when none does."""
        return math.lcm(self.keep_every, self.save_every)

    @property
    def most_checkpoints(self) -> int:
        """How many checkpoints a run leaves."""
        forever = self.steps // self.keeps_every if self.keeps_every else 0
        return self.keep_checkpoints + forever
