"""The rivals: objectives that train their generator beside the discriminator, loss = MLM + weight x RTD.

What the two models share is what sets the rivals apart:

`joint`          ELECTRA (Clark et al., ICLR 2020): the generator is as deep as the discriminator and narrower; token
                 and absolute position embeddings are one table each, trained by both losses. (Its released code ties
                 the token types and the normalisation after them too: 4 x E weights, not tied here. And it leaves
                 15 % of the masked positions' tokens as they were, where [MASK] stands at all of them here.) A narrow
                 generator needs a projection after its embeddings, which stock transformers have for ELECTRA's own
                 kind only; for other encoders `joint` is refused, rather than untied in silence.
`joint_shallow`  METRO, COCO-LM: full width, fewer layers, no dropout in the generator; one table of token embeddings.
`joint_gdes`     DeBERTaV3 (He et al., ICLR 2023): full width, half the depth; the discriminator's token embedding is
                 stop_gradient(generator's) + delta, delta starting at 0, so that only the MLM loss moves the table.

`joint_decoupled` shares nothing and is in decoupled.py. In all of them the samples pass no gradient, the LM head runs
on the masked positions only, at T = 1 and the same uniforms as the frozen auxiliary model's, and the discriminator
starts from the weights that the same seed gives it under `frozen`.

What a generator costs depends on which: counted at base size (12 x 768, 512 tokens, V = 32,000, 77 masked positions a
row), GFLOP per token are .669 for `joint` (ELECTRA's encoder), .781 for `joint_shallow`, .876 for `joint_gdes`; .640
for `frozen` with an auxiliary model of 4 layers at full width, .570 without any (flops.py).

Shapes: B rows, T tokens, N masked positions a row, V words, E embedding size.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fast_electra.batching.batches import MaskedBatch
from fast_electra.batching.separation import WHOLE_ROWS
from fast_electra.kernels.vocabulary_logits import cross_entropy, sample
from fast_electra.methods import metrics
from fast_electra.methods.objectives import CorruptedBatch, Exported, MaskedLMLoss, corrupt, masked_lm_inputs
from fast_electra.models import discriminator
from fast_electra.models.auxiliary import MaskedLM, build_masked_lm
from fast_electra.models.discriminator import ReplacedTokenDetection
from fast_electra.models.encoder import transformers_config
from fast_electra.models.statistic import uniforms
from fast_electra.settings.config import Config, EncoderConfig

_GENERATOR_COUNTS = 3


def generator_encoder(config: Config) -> EncoderConfig:
    """The shape of the generator that a joint objective trains, from the discriminator's and `config.generator`."""
    encoder, sizes = config.encoder, config.generator
    embedding_size = encoder.embedding_size or encoder.hidden_size
    if config.objective == "joint":
        width, head = encoder.hidden_size // sizes.width_divisor, encoder.hidden_size // encoder.num_heads
        return replace(
            encoder,
            hidden_size=width,
            num_heads=max(1, width // head),
            intermediate_size=encoder.intermediate_size // sizes.width_divisor,
            embedding_size=embedding_size,
        )
    if config.objective == "joint_gdes":
        return replace(encoder, num_layers=encoder.num_layers // sizes.gdes_depth_divisor)
    return replace(encoder, num_layers=encoder.num_layers // sizes.depth_divisor, dropout=0.0, attention_dropout=0.0)


class DisentangledEmbedding(nn.Module):
    """Token embeddings stop_gradient(shared) + weight: `weight` (V, E) is DeBERTaV3's delta, set to 0 here.

    Its name is the stock embedding's, so that the export differs from the module in this one weight's value only.
    """

    look_up: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.embedding)

    def __init__(self, shared: nn.Module, delta: nn.Parameter) -> None:
        super().__init__()
        self._shared = (shared,)  # in a tuple, so that it stays the generator's submodule alone
        self.weight = delta
        # Under ZeRO-3 a process holds its part of the weight in `ds_tensor`; elsewhere it is the weight itself.
        getattr(delta, "ds_tensor", delta).data.zero_()

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings (B, T, E): two look-ups, not a sum of whole tables."""
        with torch.no_grad():
            shared = self._shared[0](input_ids)
        return shared + self.look_up(input_ids, self.weight)


def tie_token_embeddings(generator: PreTrainedModel, model: PreTrainedModel) -> None:
    """One table of token embeddings for both models, and for the generator's LM head."""
    ours, theirs = (cast(nn.Embedding, m.get_input_embeddings()) for m in (generator, model))
    ours.weight = theirs.weight
    generator.tie_weights()


def tie_embeddings(generator: PreTrainedModel, model: PreTrainedModel) -> None:
    """One table of token embeddings and, where the encoder has absolute positions, one of those."""
    tie_token_embeddings(generator, model)
    ours, theirs = (getattr(m.base_model.embeddings, "position_embeddings", None) for m in (generator, model))
    if ours is not None and theirs is not None:
        ours.weight = theirs.weight


def disentangle_embeddings(generator: PreTrainedModel, model: PreTrainedModel) -> None:
    """The generator takes over the discriminator's new table; the discriminator looks at it and adds its delta."""
    table: Any = generator.get_input_embeddings()
    delta = table.weight
    tie_token_embeddings(generator, model)
    model.set_input_embeddings(DisentangledEmbedding(table, delta))


SHARE = {"joint": tie_embeddings, "joint_shallow": tie_token_embeddings, "joint_gdes": disentangle_embeddings}


class JointInputs(NamedTuple):
    """A MaskedBatch, and the `uniforms` (B, N) that its samples are drawn at."""

    input_ids: Tensor
    positions: Tensor
    rows: Tensor
    position_ids: Tensor
    uniforms: Tensor


class JointOutputs(NamedTuple):
    """Discriminator `logits` (B, T), the fields of the CorruptedBatch that it saw, and the generator's part.

    `generator_counts` (3,) are metrics.mlm_counts; `generator_logits` (B, N, V) are empty in training, where nothing
    reads them and they would only hold memory.
    """

    logits: Tensor
    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    generator_counts: Tensor
    generator_logits: Tensor


class JointLoss(nn.Module):
    """What the engine trains: a masked LM, a discriminator on its samples, and the weighted sum of their losses."""

    special_ids: Tensor
    cross_entropy: Callable[[Tensor, Tensor], Tensor] = staticmethod(cross_entropy)
    sample: Callable[..., Tensor] = staticmethod(sample)

    def __init__(self, generator: PreTrainedModel, model: PreTrainedModel, weight: float, special: list[int]) -> None:
        super().__init__()
        self.generator, self.discriminator = MaskedLM(generator), ReplacedTokenDetection(model)
        self.weight, self.mask_id = weight, special[0]
        self.register_buffer("special_ids", torch.tensor(special), persistent=False)

    def forward(
        self, input_ids: Tensor, positions: Tensor, rows: Tensor, position_ids: Tensor, uniforms: Tensor
    ) -> tuple[Tensor, ...]:
        """The loss and JointOutputs as one flat tuple.

        Without masked positions (N = 0) there is nothing to generate: the discriminator's loss on the tokens as they
        are, and its logits.
        """
        if positions.shape[1] == 0:
            return self.discriminator(input_ids, torch.zeros_like(input_ids, dtype=torch.uint8))
        batch = MaskedBatch(input_ids, positions, rows, position_ids)
        masked, positions, targets, _ = masked_lm_inputs(batch, self.mask_id)
        logits = self.generator(masked, positions, position_ids)  # (B, N, V)
        mlm = self.cross_entropy(logits, targets)
        logits = logits.detach()
        corrupted = corrupt(batch, self.sample(logits, 1.0, uniforms, self.special_ids))
        rtd, rtd_logits = self.discriminator(*corrupted)
        seen = logits.new_empty(0) if self.training else logits
        return mlm + self.weight * rtd, rtd_logits, *corrupted, metrics.mlm_counts(mlm, logits, targets), seen


class Joint:
    """`joint`, `joint_shallow` and `joint_gdes`: generator and discriminator in one module, one optimizer."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.pad_id = config, cast(int, tokenizer.pad_token_id)
        self.mask_id = cast(int, tokenizer.mask_token_id)
        self.special = [self.mask_id, *(set(tokenizer.all_special_ids) - {self.mask_id})]
        self.generator_shape = transformers_config(generator_encoder(config), tokenizer)

    def module(self, config: PreTrainedConfig, attention: str, dtype: torch.dtype) -> nn.Module:
        """Both models with what they share and their loss."""
        model = discriminator.build(config, attention, dtype)
        generator = build_masked_lm(self.generator_shape, attention, dtype)
        SHARE[self.config.objective](generator, model)
        return JointLoss(generator, model, self.config.generator.discriminator_loss_weight, self.special)

    def inputs(self, batch: MaskedBatch, u: float) -> JointInputs:
        """The engine's input; `u` changes nothing here."""
        return JointInputs(*batch, uniforms(batch, self.config.seed))

    def evaluation_inputs(self, batch: MaskedBatch) -> JointInputs:
        """The same for held-out rows."""
        return self.inputs(batch, 1.0)

    def counts(self, outputs: Sequence[Tensor], inputs: Any) -> Tensor:
        """What a batch adds to the metrics, the generator's first."""
        of = JointOutputs(*outputs)
        return torch.cat([of.generator_counts, metrics.rtd_counts(of.logits, of.labels, of.input_ids != self.pad_id)])

    def report(self, counts: Tensor) -> dict[str, float]:
        """The discriminator's metrics under their usual names (`loss` is the RTD loss alone), and `generator_...`."""
        generator = metrics.mlm_report(counts[:_GENERATOR_COUNTS])
        rtd = metrics.rtd_report(counts[_GENERATOR_COUNTS:], self.config.data.masked_share)
        return rtd | {f"generator_{name}": value for name, value in generator.items()}

    def token_scores(self, module: Any, input_ids: Tensor) -> Tensor:
        """The discriminator's log P(original) of each token."""
        nothing = input_ids.new_empty(len(input_ids), 0)
        rows = input_ids.new_empty(len(input_ids))
        logits = module(input_ids, nothing, rows, WHOLE_ROWS, nothing.double())[1]
        return discriminator.log_original(logits)

    def progress(self, u: float) -> dict[str, float]:
        """Nothing moves with the run."""
        return {}

    def exports(self, module: Any, batch: MaskedBatch, inputs: Any, outputs: Sequence[Tensor]) -> dict[str, Exported]:
        """The discriminator, with its summed embedding under `joint_gdes`, and the generator as a masked LM."""
        of, model, generator = JointOutputs(*outputs), module.discriminator.model, self.generator_of(module)
        embedding, added = model.get_input_embeddings(), None
        if isinstance(embedding, DisentangledEmbedding):
            name = next(name for name, each in model.named_modules() if each is embedding)
            added = (f"{name}.weight", generator.get_input_embeddings())
        corrupted = CorruptedBatch(of.input_ids, of.labels, of.position_ids)
        masked = masked_lm_inputs(batch, self.mask_id)
        return {
            "export": Exported(model, ReplacedTokenDetection, corrupted, of.logits, added),
            "generator": Exported(generator, MaskedLMLoss, masked, of.generator_logits),
        }

    def generator_of(self, module: Any) -> PreTrainedModel:
        """The stock generator; `module` is what the engine trains."""
        return module.generator.model
