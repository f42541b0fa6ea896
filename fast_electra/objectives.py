"""What is trained and on what: an objective turns a MaskedBatch into the engine's input.

`frozen` is the method: samples of a frozen auxiliary model at the temperature of the moment, and a discriminator that
tells which tokens they replaced. `mlm` is BERT's own objective, and makes an auxiliary model where none exists.
Objectives share data, engine, optimizer and clock, so that a difference between them can come from nothing else.
"""

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from fast_electra import discriminator, metrics
from fast_electra.auxiliary import Auxiliary, MaskedLM, build_masked_lm, mask_out
from fast_electra.batches import MaskedBatch
from fast_electra.config import TemperatureConfig
from fast_electra.temperature import temperature


class Objective(Protocol):
    """What the loop asks of an objective; `Inputs` below stands for the NamedTuple of tensors each has of its own."""

    def build(self, config: PreTrainedConfig, attention: str, dtype: torch.dtype) -> PreTrainedModel:
        """The stock model to train, with new weights."""

    def wrap(self, model: PreTrainedModel) -> nn.Module:
        """The module the engine trains: takes Inputs, gives (loss, logits)."""

    def inputs(self, batch: MaskedBatch, u: float) -> Any:
        """Inputs at u, the fraction of updates done."""

    def evaluation_inputs(self, batch: MaskedBatch) -> Any:
        """Inputs of a held-out batch, the same whenever asked."""

    def counts(self, logits: Tensor, inputs: Any) -> Tensor:
        """What a batch adds to the metrics."""

    def report(self, counts: Tensor) -> dict[str, float]:
        """The metrics of summed counts."""

    def progress(self, u: float) -> dict[str, float]:
        """What moves with the run, for its log."""


class CorruptedBatch(NamedTuple):
    """`input_ids` (B, T) with the samples in place and `labels` (B, T), 1 where a token differs from the original."""

    input_ids: Tensor
    labels: Tensor


def corrupt(batch: MaskedBatch, samples: Tensor) -> CorruptedBatch:
    """Put `samples` (B, N) at the batch's masked positions."""
    input_ids = batch.input_ids.scatter(1, batch.positions, samples)
    return CorruptedBatch(input_ids, (input_ids != batch.input_ids).to(torch.uint8))


class Frozen:
    """Replaced-token detection against a frozen auxiliary model at a descending temperature."""

    build = staticmethod(discriminator.build)
    wrap = discriminator.ReplacedTokenDetection

    def __init__(self, auxiliary: Auxiliary, schedule: TemperatureConfig, mask_rate: float) -> None:
        self.auxiliary, self.schedule, self.mask_rate = auxiliary, schedule, mask_rate

    def inputs(self, batch: MaskedBatch, u: float) -> CorruptedBatch:
        """The engine's input at u, the fraction of updates done."""
        return self.inputs_at(batch, temperature(self.schedule, u))

    def inputs_at(self, batch: MaskedBatch, value: float) -> CorruptedBatch:
        """The engine's input with samples at temperature `value`."""
        return corrupt(batch, self.auxiliary.sample(batch, value))

    def evaluation_inputs(self, batch: MaskedBatch) -> CorruptedBatch:
        """Held-out figures are taken at T = 1, where they compare over a run and between runs."""
        return self.inputs_at(batch, 1.0)

    def counts(self, logits: Tensor, inputs: CorruptedBatch) -> Tensor:
        """What a batch adds to the metrics."""
        return metrics.rtd_counts(logits, inputs.labels, inputs.input_ids != self.auxiliary.pad_id)

    def report(self, counts: Tensor) -> dict[str, float]:
        """The metrics of the summed counts."""
        return metrics.rtd_report(counts, self.mask_rate)

    def progress(self, u: float) -> dict[str, float]:
        """What moves with the run: the temperature."""
        return {"temperature": temperature(self.schedule, u)}


class MaskedLMInputs(NamedTuple):
    """Tokens (B, T) with [MASK] in place, the masked `positions` (B, N) and the original tokens there (B, N)."""

    input_ids: Tensor
    positions: Tensor
    targets: Tensor


class MaskedLMLoss(nn.Module):
    """What the engine trains for `mlm`: loss and logits at the masked positions."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.lm = MaskedLM(model)

    @property
    def model(self) -> PreTrainedModel:
        """The stock model inside."""
        return self.lm.model

    def forward(self, input_ids: Tensor, positions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy (float32) and the logits (B, N, V)."""
        logits = self.lm(input_ids, positions)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()), logits


class Mlm:
    """BERT's objective: predict the masked tokens."""

    build = staticmethod(build_masked_lm)
    wrap = MaskedLMLoss

    def __init__(self, mask_id: int) -> None:
        self.mask_id = mask_id

    def inputs(self, batch: MaskedBatch, u: float) -> MaskedLMInputs:
        """The engine's input; `u` changes nothing here."""
        return MaskedLMInputs(
            mask_out(batch, self.mask_id), batch.positions, batch.input_ids.gather(1, batch.positions)
        )

    def evaluation_inputs(self, batch: MaskedBatch) -> MaskedLMInputs:
        """The same for held-out rows."""
        return self.inputs(batch, 1.0)

    def counts(self, logits: Tensor, inputs: MaskedLMInputs) -> Tensor:
        """What a batch adds to the metrics."""
        return metrics.mlm_counts(logits, inputs.targets)

    def report(self, counts: Tensor) -> dict[str, float]:
        """The metrics of the summed counts."""
        return metrics.mlm_report(counts)

    def progress(self, u: float) -> dict[str, float]:
        """Nothing moves with the run."""
        return {}
