"""Joint training with two optimizers (DecoupledOptim, Dong et al., ICML 2023): each model has an engine of its own.

Adam divides each gradient by its own size, so that under one optimizer the weight of 50 does not weigh anything where
the models share no parameter; it acts through shared embeddings, epsilon and the common clipping alone. Here nothing
is shared, and each model has its loss unweighted, its clipping by its own norm, and its learning rate
(`generator.learning_rate_ratio` times the discriminator's): the knobs by which that paper controls the generator's
strength. Two engines say exactly that; parameter groups of one engine would still be clipped by a common norm. (The
paper's text was not at hand beyond its abstract; that embeddings are untied is how "completely" is read here.)

The generator is `joint_shallow`'s shape. It takes its step while the discriminator's input is made, from the same
forward pass that is sampled, so that a batch costs what it costs under `joint_shallow`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fast_electra.batching.batches import MaskedBatch
from fast_electra.batching.separation import WHOLE_ROWS
from fast_electra.kernels.vocabulary_logits import sample
from fast_electra.methods.divergence import broken_throughout
from fast_electra.methods.joint import Joint
from fast_electra.methods.objectives import MaskedLMLoss, corrupt, masked_lm_inputs
from fast_electra.models import discriminator
from fast_electra.models.auxiliary import build_masked_lm
from fast_electra.models.discriminator import ReplacedTokenDetection
from fast_electra.models.statistic import uniforms
from fast_electra.settings.config import Config


class DecoupledInputs(NamedTuple):
    """A CorruptedBatch, and of the generator that made it what JointOutputs says of it."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    generator_counts: Tensor
    generator_logits: Tensor


class DiscriminatorLoss(nn.Module):
    """The discriminator with its loss; what is known of the generator passes through, to be logged with it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.discriminator = ReplacedTokenDetection(model)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        generator_counts: Tensor,
        generator_logits: Tensor,
    ) -> tuple[Tensor, ...]:
        """The loss and JointOutputs as one flat tuple."""
        loss, logits = self.discriminator(input_ids, labels, position_ids)
        return loss, logits, input_ids, labels, position_ids, generator_counts, generator_logits


class Decoupled(Joint):
    """`joint_decoupled`: give it the generator's engine (around `generator_module`) before asking for inputs."""

    generator: Any  # the engine, called as its module; also .backward(loss), .step(), .eval(), .train()

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(config, tokenizer)
        self.special_ids = torch.tensor(self.special)

    def generator_module(self, attention: str, dtype: torch.dtype) -> nn.Module:
        """The generator with its loss."""
        return MaskedLMLoss(build_masked_lm(self.generator_shape, attention, dtype))

    def module(self, config: PreTrainedConfig, attention: str, dtype: torch.dtype) -> nn.Module:
        """The discriminator with its loss."""
        return DiscriminatorLoss(discriminator.build(config, attention, dtype))

    def generator_of(self, module: Any) -> PreTrainedModel:
        """The stock generator, in the engine of its own."""
        return self.generator.module.model

    def inputs(self, batch: MaskedBatch, u: float) -> Any:
        """Train the generator on the batch and corrupt it with samples of the same forward pass."""
        loss, logits, counts = self.generator(*masked_lm_inputs(batch, self.mask_id))
        self.generator.backward(broken_throughout(loss))
        self.generator.step()
        return self._corrupted(batch, logits.detach(), counts)._replace(generator_logits=logits.new_empty(0))

    def evaluation_inputs(self, batch: MaskedBatch) -> Any:
        """The batch corrupted with the generator's samples; nothing is trained."""
        self.generator.eval()
        with torch.no_grad():
            _, logits, counts = self.generator(*masked_lm_inputs(batch, self.mask_id))
        self.generator.train()
        return self._corrupted(batch, logits, counts)

    def token_scores(self, module: Any, input_ids: Tensor) -> Tensor:
        """The discriminator's log P(original) of each token; the generator has no part in it."""
        labels, nothing = torch.zeros_like(input_ids, dtype=torch.uint8), torch.empty(0, device=input_ids.device)
        return discriminator.log_original(module(input_ids, labels, WHOLE_ROWS, nothing, nothing)[1])

    def _corrupted(self, batch: MaskedBatch, logits: Tensor, counts: Tensor) -> DecoupledInputs:
        self.special_ids = self.special_ids.to(logits.device)  # moves once
        samples = sample(logits, 1.0, uniforms(batch, self.config.seed), self.special_ids)
        return DecoupledInputs(*corrupt(batch, samples), counts, logits)
