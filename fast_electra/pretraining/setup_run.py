"""From a config to a run ready to train: corpora verified, the auxiliary model through its gate, the engine built."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fast_electra.batching import separation
from fast_electra.batching.batches import Batches
from fast_electra.batching.separation import FLEX
from fast_electra.checkpoints.checkpoint import START, Position
from fast_electra.corpora import corpus as corpora
from fast_electra.corpora import documentation
from fast_electra.costs import flops, run_flops
from fast_electra.engine import auxiliary_engine, deepspeed_config, optim, parallel, sharded_weights
from fast_electra.engine.fetching import in_turns
from fast_electra.engine.parallel import on_rank_zero
from fast_electra.evaluation import blimp
from fast_electra.methods import objectives, replay
from fast_electra.methods.decoupled import Decoupled
from fast_electra.methods.joint import Joint
from fast_electra.methods.objectives import Objective
from fast_electra.models import auxiliary, initial_weights
from fast_electra.models.encoder import attention_kernel, recompute_activations, transformers_config
from fast_electra.models.statistic import Statistic, unigram
from fast_electra.pretraining import choices
from fast_electra.runs import preemption, run_folder, verified
from fast_electra.settings.config import Config, TemperatureConfig

GATE_ROWS = 256
_BOUND = ("auxiliary_weights", "auxiliary_engine", "initial_weights", "replacement_paths")
_CHECKPOINT_BYTES_PER_WEIGHT, _EXPORT_BYTES_PER_WEIGHT = 14, 4


@dataclass
class Run:
    """Everything the loop uses, where it is, and when this start began (as `time.time()` gives it).

    `generator` is an engine of its own, which few objectives have.
    """

    config: Config
    batches: Batches
    tokenizer: PreTrainedTokenizerBase
    objective: Objective
    engine: parallel.Engine
    generator: parallel.Engine | None
    flops_per_token: float
    peak_flops: float
    pairs: list[blimp.Pair] = field(default_factory=list)
    position: Position = START
    began: float = field(default_factory=time.time)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def engines(self) -> list[parallel.Engine]:
        """The one or two engines that train."""
        return [self.engine] if self.generator is None else [self.engine, self.generator]


def stop_if_preempted() -> None:
    """Raise `Preempted` on all processes when any was told to stop. All take part."""
    if parallel.anywhere(preemption.requested()):
        raise preemption.Preempted


def open_batches(config: Config) -> Batches:
    """The run's corpora, verified; the built-in documentation is prepared first when none is named.

    Raises ValueError when a corpus is damaged or two of them have different tokenizers.
    """
    if not config.corpus:
        on_rank_zero(lambda: _prepare_documentation(config))
    named = config.corpora or [(documentation_corpus(config), 1.0)]

    def open_all() -> list[tuple[corpora.Corpus, float]]:
        return [(corpora.Corpus.open(path, tokenizer=config.tokenizer or None), weight) for path, weight in named]

    opened = in_turns(open_all) if config.tokenizer else open_all()  # a corpus's own tokenizer lies beside it
    first = opened[0][0]
    for other, _ in opened[1:]:
        if other.tokenizer_fingerprint != first.tokenizer_fingerprint:
            raise ValueError(
                f"corpus = {config.corpus!r}: {other.path} was made with another tokenizer than {first.path}; "
                "prepare both with the same one (prepare_corpus.py --tokenizer)"
            )
    if config.data.verify:
        on_rank_zero(lambda: _verify(config.output, [each for each, _ in opened]))
    data = config.data
    if config.objective == "replay":
        folder = Path(config.replacements)
        on_rank_zero(lambda: replay.with_stored_draws(data, folder))
        data = replay.with_stored_draws(data, folder)
    return Batches(opened, data, config.seed)


def _verify(output: str, opened: list[corpora.Corpus]) -> None:
    with preemption.at_once():
        for each in opened:
            verified.once(output, each.files, each.fingerprint, each.verify)


def documentation_corpus(config: Config) -> str:
    """Where a run without a corpus keeps the one made of the built-in documentation."""
    return str(Path(config.output) / "corpus")


def _prepare_documentation(config: Config) -> None:
    folder = Path(documentation_corpus(config))
    if not folder.exists():
        with preemption.at_once():
            text = documentation.write(Path(config.output))
            corpora.build([str(text)], folder, tokenizer=None, vocab_size=config.data.vocab_size)


def build(config: Config, settings: dict[str, Any], batches: Batches) -> Run:
    """The objective, its model (partitioned as it is made under ZeRO-3) and the engine around it."""
    config = choices.decided(config)
    tokenizer = batches.corpora[0].tokenizer
    shape = transformers_config(config.encoder, tokenizer)
    objective, auxiliary_shape, facts = _objective(config, tokenizer, batches)
    generator_shape = objective.generator_shape if isinstance(objective, Joint) else None
    beginning, of_weights = in_turns(lambda: initial_weights.read(config, shape, generator_shape, tokenizer))
    facts |= of_weights
    on_rank_zero(lambda: run_folder.bind(config.output, batches.identity() | _bound(facts)))
    settings = deepspeed_config.fill(settings, config, parallel.world_size(), parallel.device().type == "cpu")
    on_rank_zero(lambda: run_folder.save_deepspeed(config.output, settings))
    engine, num_weights = _engine(config, settings, partial(objective.module, shape), beginning)
    generator = None
    if isinstance(objective, Decoupled):
        objective.generator, more = _engine(
            config, deepspeed_config.for_generator(settings, config), objective.generator_module, beginning
        )
        generator, num_weights = objective.generator, num_weights + more
    shapes, kernel, rows = (shape, auxiliary_shape), _attention(config), engine.train_micro_batch_size_per_gpu()
    flops_per_token, separated = run_flops.counted(config, batches, shapes, rows, kernel)
    return Run(
        config,
        batches,
        tokenizer,
        objective,
        engine,
        generator,
        flops_per_token,
        peak_flops=matrix_product_flops(config),
        pairs=_pairs(config),
        facts=facts | separated | {"weights": num_weights, "attention": kernel},
    )


def _pairs(config: Config) -> list[blimp.Pair]:
    """The sentences that every evaluation scores besides, if any are asked for."""
    if not config.run.blimp:
        return []
    on_rank_zero(lambda: blimp.load(config.run.blimp, config.run.blimp_pairs))
    return blimp.load(config.run.blimp, config.run.blimp_pairs)


def _bound(facts: dict[str, Any]) -> dict[str, Any]:
    """What, with the corpora, must be the same when a run is resumed, and is not told by its config."""
    return {name: facts[name] for name in _BOUND if name in facts}


def _attention(config: Config) -> str:
    """The name of the attention that the trained models compute with."""
    length, separate = config.data.sequence_length, config.data.separate_documents
    return attention_kernel(config.encoder, length, parallel.device(), choices.dtype_of(config), separate)


def _engine(
    config: Config,
    settings: dict[str, Any],
    make: Callable[[str, torch.dtype], nn.Module],
    beginning: initial_weights.Beginning,
) -> tuple[parallel.Engine, int]:
    """By filled settings, the engine around what `make` builds, with what it begins with in place, and its size."""
    torch.manual_seed(config.seed)
    with parallel.building(settings):
        module = make(_attention(config), choices.dtype_of(config))
    sharded_weights.begin(module, beginning)
    if config.run.activation_checkpointing:
        recompute_activations(module)
    num_weights = sharded_weights.num_weights(module)
    checkpoints = _CHECKPOINT_BYTES_PER_WEIGHT * (config.run.most_checkpoints + 1)
    needed = num_weights * (checkpoints + _EXPORT_BYTES_PER_WEIGHT)
    on_rank_zero(lambda: run_folder.require_space(config.output, needed))
    groups = optim.parameter_groups(module, config.optimizer.weight_decay)
    return parallel.training_engine(module, groups, settings, config.run.compile is True), num_weights


def matrix_product_flops(config: Config) -> float:
    """FLOP/s of the fastest of some matrix products in each process, all of them at once: the sum over processes."""
    parallel.barrier()
    mine = flops.measured_matmul_flops_per_second(parallel.device(), choices.dtype_of(config), of=min)
    return float(parallel.sum_over_processes(torch.tensor(mine, dtype=torch.float64, device=parallel.device())))


def _objective(
    config: Config, tokenizer: PreTrainedTokenizerBase, batches: Batches
) -> tuple[Objective, PreTrainedConfig | None, dict[str, Any]]:
    """The objective, the config of its auxiliary model or generator if it has one, and what the gate measured."""
    match config.objective:
        case "mlm":
            mlm = objectives.Mlm(tokenizer.mask_token_id, tokenizer.all_special_ids)
            return mlm, None, auxiliary.to_be_beaten(batches, min(GATE_ROWS, batches.num_held_out))
        case "unigram" | "random":
            sampler = Statistic(_word_weights(config, batches, len(tokenizer)), tokenizer, config.seed)
            return objectives.Frozen(sampler, None, config.data.masked_share), None, {}
        case "joint_decoupled":
            decoupled = Decoupled(config, tokenizer)
            return decoupled, decoupled.generator_shape, {}
        case "joint" | "joint_shallow" | "joint_gdes":
            joint = Joint(config, tokenizer)
            return joint, joint.generator_shape, {}
        case "replay":
            return _replay(config, tokenizer, batches)
        case _:
            return _frozen(config, tokenizer, batches)


def _word_weights(config: Config, batches: Batches, vocab_size: int) -> NDArray[np.float64]:
    """What `random` and `unigram` draw words by (V,)."""
    if config.objective == "random":
        return np.ones(vocab_size)
    weights = [weight for _, weight in config.corpora]
    return unigram([(c.tokens, weight) for c, weight in zip(batches.corpora, weights, strict=True)], vocab_size)


def _frozen(
    config: Config, tokenizer: PreTrainedTokenizerBase, batches: Batches
) -> tuple[Objective, PreTrainedConfig, dict[str, Any]]:
    """The objective on an auxiliary model that has passed the gate."""
    frozen, model, facts = open_auxiliary(config, tokenizer, batches)
    schedule = TemperatureConfig("constant", initial=1.0) if config.objective == "two_stage" else config.temperature
    return objectives.Frozen(frozen, schedule, config.data.masked_share), model.config, facts


def open_auxiliary(
    config: Config, tokenizer: PreTrainedTokenizerBase, batches: Batches
) -> tuple[auxiliary.Auxiliary, PreTrainedModel, dict[str, Any]]:
    """The auxiliary model in its engine, the stock model in it, and what the gate, which it has passed, measured."""
    length, dtype = config.data.sequence_length, choices.dtype_of(config)
    model = in_turns(lambda: auxiliary.load(config.auxiliary, tokenizer, length, dtype))
    if config.data.separate_documents:
        separation.require_separable(model.config, f"the auxiliary model {config.auxiliary!r}")
        if _attention(config) == FLEX and model._supports_flex_attn:
            model.set_attn_implementation(FLEX)
    module, mask_id = auxiliary.MaskedLM(model), cast(int, tokenizer.mask_token_id)
    choice = auxiliary_engine.for_run(module, batches, mask_id, config, dtype)
    frozen = auxiliary.Auxiliary(choice.engine, tokenizer, config.seed, choice.name == "compiled")
    rows = min(GATE_ROWS, batches.num_held_out)
    accuracy, most_frequent, total = frozen.accuracy(batches, rows, parallel.device())
    if config.auxiliary_gate:
        auxiliary.gate(config.auxiliary, accuracy, most_frequent, total)
    facts = {"auxiliary": config.auxiliary, "auxiliary_top1": accuracy, "most_frequent_share": most_frequent}
    facts |= {"auxiliary_engine": choice.name, "auxiliary_weights": auxiliary.weights_fingerprint(model)}
    return frozen, model, facts


def _replay(
    config: Config, tokenizer: PreTrainedTokenizerBase, batches: Batches
) -> tuple[Objective, PreTrainedConfig | None, dict[str, Any]]:
    """The objective on replacement paths that are those of the run's rows; every byte of them verified first."""

    def check() -> None:
        store = replay.open_store(config, batches)
        if config.data.verify:
            with preemption.at_once():
                verified.once(config.output, store.files, store.fingerprint, store.verify)

    on_rank_zero(check)
    store = replay.open_store(config, batches, verified=config.data.verify)
    pad_id = cast(int, tokenizer.pad_token_id)
    return replay.Replay(store, pad_id, config.temperature, config.data.masked_share), None, replay.facts(store)
