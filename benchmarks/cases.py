"""What is compared: rows of (recipe, objective, row length, vocabulary, positions the LM head runs on).

Every case takes its shapes from a recipe, so that method and rivals share the discriminator, the batch and the mask
rate, and differ in the generator (auxiliary model) alone:
  frozen, two_stage, replay       the recipe's own auxiliary model: full width, a quarter to a third of the depth
  joint_shallow, joint_decoupled  a generator of that shape, trained along (METRO, COCO-LM): the Fast-ELECTRA paper's
                                  rival; joint_decoupled counts the same FLOPs and has no line of its own there
  joint                           ELECTRA's: full depth, a third of the width (base) or a quarter; ELECTRA recipes only
  joint_gdes                      DeBERTaV3's: full width, half the depth
  joint_plain                     ELECTRA's, or METRO's where the encoder cannot have that, as scripts are written
                                  (plain_rival.py): outside the engine, the LM head on all positions; timed alone
Words are made up (`tokenizer`), because nothing that is counted or timed depends on what they are.
"""

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fast_electra.methods import joint
from fast_electra.models.encoder import transformers_config
from fast_electra.settings import recipes
from fast_electra.settings.config import Config, EncoderConfig
from fast_electra.settings.require import did_you_mean

METHODS = ("frozen", "replay")
RIVALS = ("joint_shallow", "joint", "joint_gdes")
PLAIN = "joint_plain"
OBJECTIVES = (*METHODS, *RIVALS, "joint_decoupled", "two_stage", "unigram", "random", "mlm", PLAIN)
WITHOUT_AUXILIARY = ("replay", "unigram", "random", "mlm")
HEADS = ("masked", "all")
CHECKPOINTING = "+checkpointing"  # at the end of a case's name
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, order=True)
class Case:
    """One thing to count, simulate or time; `micro_batch_rows` 0 means the recipe's.

    `activation_checkpointing` is that of a run; it changes memory and time, and no count of FLOPs.
    """

    recipe: str
    objective: str
    sequence_length: int = 512
    vocab_size: int = 32_000
    head: str = "masked"
    micro_batch_rows: int = 0
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        known = {"recipe": tuple(recipes.RECIPES), "objective": OBJECTIVES, "head": HEADS}
        for field, choices in known.items():
            if getattr(self, field) not in choices:
                raise ValueError(_unknown(field, getattr(self, field), choices))
        if self.objective == PLAIN and self.activation_checkpointing:
            raise ValueError(f"{CHECKPOINTING}: {PLAIN} is as scripts are written, and they keep what they compute")
        if self.objective == PLAIN and self.head != "all":
            raise ValueError(
                f"head {self.head!r}: {PLAIN} runs the LM head on all positions; write all, or leave it out"
            )
        if self.vocab_size <= len(SPECIAL):
            raise ValueError(f"vocab_size = {self.vocab_size}: give more than the {len(SPECIAL)} special tokens")

    @property
    def name(self) -> str:
        """`base/frozen/512/32000/masked`, the micro-batch where it is not the recipe's, and `+checkpointing`."""
        rows = f"/{self.micro_batch_rows}" if self.micro_batch_rows else ""
        ending = rows + (CHECKPOINTING if self.activation_checkpointing else "")
        return f"{self.recipe}/{self.objective}/{self.sequence_length}/{self.vocab_size}/{self.head}{ending}"

    @property
    def fields(self) -> dict[str, Any]:
        """The case as a result row carries it."""
        return dataclasses.asdict(self)


def parse(name: str) -> Case:
    """The case of a name, its end left out where it is the default. Raises ValueError for one that is not known."""
    parts = name.removesuffix(CHECKPOINTING).split("/")
    if not 2 <= len(parts) <= 6:
        raise ValueError(
            f"case {name!r}: write recipe/objective[/sequence_length[/vocab_size[/head]]][{CHECKPOINTING}]"
        )
    try:
        numbers = [int(part) for part in (*parts[2:4], *parts[5:])]
    except ValueError:
        raise ValueError(f"case {name!r}: the row length, vocabulary and micro-batch are whole numbers") from None
    names = ("recipe", "objective", "sequence_length", "vocab_size", "head", "micro_batch_rows")
    values = (*parts[:2], *numbers[:2], *parts[4:5], *numbers[2:])
    head = "all" if parts[1] == PLAIN else "masked"
    fields = {"head": head, "activation_checkpointing": name.endswith(CHECKPOINTING)}
    return Case(**fields | dict(zip(names, values, strict=False)))  # type: ignore[arg-type]


def _unknown(field: str, value: str, choices: tuple[str, ...]) -> str:
    near = did_you_mean(value, choices)
    return f"{field} {value!r} is no part of a benchmark case: {near}choose one of {', '.join(choices)}"


def config(case: Case) -> Config:
    """The recipe with the case's objective, row length and vocabulary.

    Raises ValueError where the recipe's encoder cannot have the objective (`joint` takes an ELECTRA).
    """
    recipe = recipes.get(case.recipe)
    longest = max(recipe.encoder.max_positions, case.sequence_length)
    auxiliary = dataclasses.replace(recipe.auxiliary_model.encoder, max_positions=longest)
    return dataclasses.replace(
        recipe,
        objective=joint_of(case.recipe) if case.objective == PLAIN else case.objective,
        replacements="replacement paths, named when they are made" if case.objective == "replay" else "",
        data=dataclasses.replace(recipe.data, sequence_length=case.sequence_length, vocab_size=case.vocab_size),
        encoder=dataclasses.replace(recipe.encoder, max_positions=longest),
        auxiliary_model=dataclasses.replace(recipe.auxiliary_model, encoder=auxiliary),
        run=dataclasses.replace(
            recipe.run,
            micro_batch_rows=case.micro_batch_rows or recipe.run.micro_batch_rows,
            activation_checkpointing=case.activation_checkpointing,
        ),
    )


def generator_encoder(settings: Config) -> EncoderConfig:
    """The shape of the auxiliary model or generator of these settings."""
    if settings.objective.startswith("joint"):
        return joint.generator_encoder(settings)
    return settings.auxiliary_model.encoder


def shapes(case: Case, settings: Config | None = None) -> tuple[PreTrainedConfig, PreTrainedConfig | None]:
    """The stock configurations of the discriminator (for `mlm`, of the one model) and of the generator, if any.

    They follow `settings` where given, and `config(case)` otherwise.
    """
    settings, words = settings or config(case), tokenizer(case.vocab_size)
    main = transformers_config(settings.encoder, words)
    if case.objective in WITHOUT_AUXILIARY:
        return main, None
    return main, transformers_config(generator_encoder(settings), words)


@cache
def tokenizer(vocab_size: int) -> PreTrainedTokenizerBase:
    """A stock tokenizer of `vocab_size` made-up words, the special ones first."""
    words = [*SPECIAL, *(f"word{number}" for number in range(vocab_size - len(SPECIAL)))]
    model = WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    named = {f"{word[1:-1].lower()}_token": word for word in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **named)


def joint_of(recipe: str) -> str:
    """Our own joint objective that comes nearest to ELECTRA's: `joint` where the recipe's encoder can have it."""
    return "joint" if "joint" in rivals(recipe) else "joint_shallow"


def rivals(recipe: str) -> tuple[str, ...]:
    """The joint rivals that the recipe's encoder can have."""
    electra = recipes.get(recipe).encoder.model_type == "electra"
    return tuple(rival for rival in RIVALS if rival != "joint" or electra)


# The tables of the report. FLOPs are arithmetic, so that every combination is counted.

RECIPES = ("electra_base", "electra_large", "base", "large", "xl")
LENGTHS, VOCABULARIES = (128, 512), (32_000, 128_000)

COUNTED = tuple(
    Case(recipe, objective, length, vocabulary, head)
    for recipe in RECIPES
    for objective in (*METHODS, *rivals(recipe), "mlm")
    for length in LENGTHS
    for vocabulary in VOCABULARIES
    for head in HEADS
)
# Those that run beside each other, on a machine without and with a GPU; each at the recipe's own vocabulary or 32k.
_TIMED = (*METHODS, "joint_shallow", "joint_gdes", "mlm")
CONTESTS = {
    "cpu": (
        tuple(Case("small", objective, 128, 16_000, "masked", 16) for objective in _TIMED),
        (
            *(Case("base", objective, 512, 32_000, "masked", 2) for objective in _TIMED[:3]),
            Case("base", PLAIN, 512, 32_000, "all", 2),
        ),
    ),
    "cuda": tuple(
        (*(Case(recipe, objective) for objective in _TIMED), Case(recipe, PLAIN, head="all"))
        for recipe in ("base", "large")
    ),
}
REPLAYED = {device: tuple(contest[0] for contest in contests) for device, contests in CONTESTS.items()}
SIMULATED = tuple(Case(recipe, objective) for recipe in RECIPES for objective in (*METHODS, *rivals(recipe), "mlm"))
