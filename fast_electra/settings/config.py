"""A run as a value: frozen dataclasses, printed and saved with every run.

A recipe (recipes.py) is a function that returns a `Config`; the command line overrides single fields. What can be
derived from other fields is a property, never a field, so that no two fields can contradict each other.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

from fast_electra.settings.require import require, require_each, require_one_of
from fast_electra.settings.run_config import OptimizerConfig, RunConfig

OBJECTIVES = (
    *("frozen", "replay", "two_stage", "unigram", "random"),
    *("joint", "joint_shallow", "joint_gdes", "joint_decoupled"),
    "mlm",
)
SCHEDULES = ("exponential", "linear", "polynomial", "cosine", "constant")
ENGINES = ("auto", "plain", "compiled", "injected")
ATTENTIONS = ("auto", "sdpa", "eager")
ENCODER_TYPES = ("modernbert", "electra", "bert", "roberta", "deberta-v2")
_AUXILIARY_SEED = 1000  # on top of a run's
_EPSILON = 1e-6  # Adam's in the papers of ELECTRA, COCO-LM and METRO


@dataclass(frozen=True)
class DataConfig:
    """Rows and masks.

    A row is `sequence_length` tokens, of which `mask_rate` are masked; the last `held_out_rows` rows are never trained
    on. `vocab_size` is used only when a tokenizer is trained for the built-in documentation. `verify` hashes every byte
    of the corpus at the first start, and of what has changed since by size or time at later ones.

    `num_draws` masks are drawn for a row, one for each pass over the corpus, before they come round again; 0 for new
    ones in every pass, or, with the objective `replay`, as many as are stored. `separate_documents` has no token attend
    to another document of its row, in all models, and positions begin anew in each.
    """

    sequence_length: int = 512
    mask_rate: float = 0.15
    held_out_rows: int = 512
    vocab_size: int = 32_000
    verify: bool = True
    num_draws: int = 0
    separate_documents: bool = False

    def __post_init__(self) -> None:
        require(self.sequence_length >= 8, "data.sequence_length", self.sequence_length, "give at least 8 tokens a row")
        require(0 < self.mask_rate < 1, "data.mask_rate", self.mask_rate, "give a share between 0 and 1, such as 0.15")
        masks = f"it masks {self.num_masked} of {self.sequence_length} tokens a row"
        remedy = f"{masks}; give a rate that masks at least one token and at most half of them"
        require(1 <= self.num_masked <= self.sequence_length // 2, "data.mask_rate", self.mask_rate, remedy)
        require(self.held_out_rows >= 1, "data.held_out_rows", self.held_out_rows, "hold out at least one row")
        require(self.num_draws >= 0, "data.num_draws", self.num_draws, "give 0, new masks in every pass, or more")

    @property
    def num_masked(self) -> int:
        """N, the masked positions of a row."""
        return round(self.mask_rate * self.sequence_length)

    @property
    def masked_share(self) -> float:
        """N / T, which the rate is rounded to."""
        return self.num_masked / self.sequence_length


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of a text encoder: `model_type` modernbert (every layer global), electra, bert, roberta or deberta-v2.

    `embedding_size` 0 means the hidden size; a smaller one is electra's. `max_positions` is the longest row it takes.
    `attention` is sdpa (torch's, fused), eager (plain matrix products), or auto: the fastest, ours on CPUs in bf16.
    """

    model_type: str = "modernbert"
    num_layers: int = 12
    hidden_size: int = 768
    num_heads: int = 12
    intermediate_size: int = 2048
    embedding_size: int = 0
    max_positions: int = 512
    dropout: float = 0.0
    attention_dropout: float = 0.0
    attention: str = "auto"

    def __post_init__(self) -> None:
        require_one_of(ENCODER_TYPES, "encoder.model_type", self.model_type)
        sizes = ("num_layers", "hidden_size", "num_heads", "intermediate_size", "max_positions")
        require_each("encoder", self, sizes, lambda size: size >= 1, "give a whole number of at least 1")
        remedy = f"it must divide the hidden size {self.hidden_size}"
        require(self.hidden_size % self.num_heads == 0, "encoder.num_heads", self.num_heads, remedy)
        remedy = f"a {self.model_type} encoder embeds tokens at its hidden size, {self.hidden_size}; give 0"
        fits = self.model_type == "electra" or self.embedding_size in (0, self.hidden_size)
        require(fits, "encoder.embedding_size", self.embedding_size, remedy)
        require(
            self.embedding_size >= 0, "encoder.embedding_size", self.embedding_size, "give 0, the hidden size, or more"
        )
        shares = ("dropout", "attention_dropout")
        require_each("encoder", self, shares, lambda share: 0 <= share < 1, "give a share from 0 up to 1")
        require_one_of(ATTENTIONS, "encoder.attention", self.attention)


@dataclass(frozen=True)
class AuxiliaryConfig:
    """How the auxiliary masked LM is trained when no existing one is named."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    steps: int = 125_000
    peak_learning_rate: float = 4e-4

    def __post_init__(self) -> None:
        require(self.steps >= 1, "auxiliary_model.steps", self.steps, "give a whole number of at least 1")
        rate, remedy = self.peak_learning_rate, "give a number above 0, such as 4e-4"
        require(0 < rate < math.inf, "auxiliary_model.peak_learning_rate", rate, remedy)


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator that the joint objectives train; its sizes are the discriminator's, divided.

    `joint` divides the width (ELECTRA: 4, base 3), `joint_shallow` and `joint_decoupled` the depth (METRO: 3, large 4),
    `joint_gdes` the depth (DeBERTaV3: 2). The loss is MLM + discriminator_loss_weight x RTD; `joint_decoupled` has no
    such sum, but a generator's learning rate of learning_rate_ratio times the discriminator's.
    """

    width_divisor: int = 4
    depth_divisor: int = 3
    gdes_depth_divisor: int = 2
    discriminator_loss_weight: float = 50.0
    learning_rate_ratio: float = 1.0

    def __post_init__(self) -> None:
        require_each("generator", self, vars(self), lambda value: 0 < value < math.inf, "give a number above 0")


@dataclass(frozen=True)
class TemperatureConfig:
    """T(u) over u, the fraction of updates done, from `initial` towards `final`.

    `schedule` is exponential, linear, polynomial, cosine or constant. `tau` belongs to the exponential one, `power` to
    the polynomial one.
    """

    schedule: str = "exponential"
    initial: float = 2.0
    final: float = 1.0
    tau: float = 0.1
    power: float = 2.0

    def __post_init__(self) -> None:
        require_one_of(SCHEDULES, "temperature.schedule", self.schedule)
        numbers = ("initial", "final", "tau", "power")
        require_each("temperature", self, numbers, lambda value: 0 < value < math.inf, "give a number above 0")


@dataclass(frozen=True)
class Config:
    """One pre-training run, in the folder `output`, from where the same command goes on.

    `recipe` names the settings that it begins with: demo, small, base, large, xl, electra_small, electra_base,
    electra_large, or NAME.auxiliary. `objective` is frozen (the method), replay, two_stage, unigram, random, joint,
    joint_shallow, joint_gdes, joint_decoupled or mlm. `seed` governs weights, order, masks and samples.

    `corpus` is a folder made by launchers/prepare_corpus.py or a Megatron prefix, or several with weights
    (`data/wiki=0.7,data/books=0.3`); empty for the built-in documentation. `tokenizer` is a folder or hub name, for a
    Megatron corpus that has none beside it. `auxiliary` is a folder or hub name of a masked LM, empty to train one
    first; `auxiliary_gate` refuses one that predicts too little, and `auxiliary_engine` is what it runs on: plain,
    compiled, injected, or auto. `replacements` is a folder made by launchers/precompute_replacements.py, which the
    objective `replay` reads instead.

    `initial_weights` is a folder or hub name of an encoder whose weights the run begins with, "auxiliary" for those of
    the auxiliary model, "auto" for the same where there is one and it fits; empty for new ones. At most
    `initial_layers` of its layers are taken, and never more than both have; 0 takes the embeddings alone. The generator
    of a joint run begins with all layers of the same model and its LM head, and a masked LM with its head too.
    """

    recipe: str = "demo"
    objective: str = "frozen"
    output: str = "runs/demo"
    corpus: str = ""
    tokenizer: str = ""
    auxiliary: str = ""
    auxiliary_gate: bool = True
    auxiliary_engine: str = "auto"
    replacements: str = ""
    initial_weights: str = ""
    initial_layers: int = 1_000
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    auxiliary_model: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        require_one_of(OBJECTIVES, "objective", self.objective)
        require_one_of(ENGINES, "auxiliary_engine", self.auxiliary_engine)
        require(bool(self.output), "output", self.output, "name a folder for the run")
        remedy = "the corpus of the built-in documentation lies in it, and corpora stand between commas; name another"
        require("," not in self.output or bool(self.corpus), "output", self.output, remedy)
        length, longest = self.data.sequence_length, self.encoder.max_positions
        remedy = f"the encoder has {longest} positions; raise encoder.max_positions or shorten the rows"
        require(length <= longest, "data.sequence_length", length, remedy)
        remedy = f"objective {self.objective!r} uses no existing masked LM; leave it out, or choose frozen"
        require(self.needs_auxiliary or not self.auxiliary, "auxiliary", self.auxiliary, remedy)
        remedy = f"objective {self.objective!r} reads no replacement paths; leave it out, or choose replay"
        if self.objective == "replay":
            remedy = "objective 'replay' reads replacement paths; name a folder that precompute_replacements.py made"
        require((self.objective == "replay") == bool(self.replacements), "replacements", self.replacements, remedy)
        self._require_generator()
        self._require_initial_weights()
        positions = self.auxiliary_model.encoder.max_positions
        require(
            not self.needs_auxiliary or bool(self.auxiliary) or self.data.sequence_length <= positions,
            "data.sequence_length",
            self.data.sequence_length,
            f"the auxiliary model to train has {positions} positions; raise auxiliary_model.encoder.max_positions",
        )
        require(self.seed >= 0, "seed", self.seed, "give a whole number of at least 0")
        _ = self.corpora

    def _require_generator(self) -> None:
        """Refuse a generator that cannot be cut from the discriminator's shape, or not be tied to it."""
        kind, width, sizes = self.encoder.model_type, self.encoder.hidden_size, self.generator
        name = {"joint": "width_divisor", "joint_gdes": "gdes_depth_divisor"}.get(self.objective, "depth_divisor")
        size, unit = (width, "hidden units") if self.objective == "joint" else (self.encoder.num_layers, "layers")
        fits = size % getattr(sizes, name) == 0 or not self.objective.startswith("joint")
        require(fits, f"generator.{name}", getattr(sizes, name), f"it must divide the discriminator's {size} {unit}")
        require(
            self.objective != "joint" or kind == "electra" or sizes.width_divisor == 1,
            "objective",
            self.objective,
            f"a narrow generator cannot share the token embeddings of a {kind} encoder, whose stock model has no "
            "projection after them; choose joint_shallow, or an electra recipe (electra_base)",
        )

    def _require_initial_weights(self) -> None:
        named, kind = self.initial_weights, self.objective
        remedy = f"the objective {kind!r} has no auxiliary model; name a folder or a hub model"
        require(named != "auxiliary" or self.needs_auxiliary, "initial_weights", named, remedy)
        require(self.initial_layers >= 0, "initial_layers", self.initial_layers, "give 0, embeddings alone, or more")

    @property
    def needs_auxiliary(self) -> bool:
        """Whether the objective samples from an existing masked LM."""
        return self.objective in ("frozen", "two_stage")

    def epsilon_for(self, objective: str) -> float:
        """What is added in Adam's step, m / (sqrt(v) + epsilon), for a model trained on `objective`.

        The papers' 1e-6 belongs to a replaced-token loss that counts 50 times. That loss alone, unweighted, has
        gradients a fiftieth as large, many below 1e-6 in a large model or batch, whose steps it would shorten: with
        1e-6 / 50 they are what they are in joint training.
        """
        if self.optimizer.epsilon != "auto":
            return self.optimizer.epsilon
        weighted = objective in ("mlm", "joint", "joint_shallow", "joint_gdes")
        return _EPSILON / (1.0 if weighted else self.generator.discriminator_loss_weight)

    @property
    def corpora(self) -> list[tuple[str, float]]:
        """(path, weight) of each corpus named, weights as given."""
        pairs = []
        for item in filter(None, (part.strip() for part in self.corpus.split(","))):
            path, _, weight = item.rpartition("=")
            try:
                pairs.append((path, float(weight)) if path and "/" not in weight else (item, 1.0))
            except ValueError:
                raise ValueError(
                    f"corpus = {self.corpus!r}: {weight!r} is no weight; write path=0.7,path=0.3, and a weight also "
                    "behind a path that ends in a name with ="
                ) from None
            require(0 < pairs[-1][1] < math.inf, "corpus", self.corpus, "every weight must be a number above 0")
        return pairs

    def for_auxiliary(self) -> "Config":
        """The masked-LM run that makes this run's auxiliary model, in the folder `auxiliary` of its output.

        Its seed is another, so that it has not met the masks that it is asked about.
        """
        return dataclasses.replace(
            self,
            recipe=f"{self.recipe}.auxiliary",
            objective="mlm",
            output=str(Path(self.output) / "auxiliary"),
            initial_weights="",
            seed=self.seed + _AUXILIARY_SEED,
            encoder=self.auxiliary_model.encoder,
            optimizer=dataclasses.replace(self.optimizer, peak_learning_rate=self.auxiliary_model.peak_learning_rate),
            run=dataclasses.replace(self.run, steps=self.auxiliary_model.steps, stop_at_step=0),
        )
