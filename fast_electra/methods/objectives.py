"""What is trained and on what: an objective turns a MaskedBatch into the engine's input.

`Frozen` is the method: samples of a frozen auxiliary model at the temperature of the moment, and a discriminator that
tells which tokens they replaced. At T = 1 throughout, begun with the auxiliary model's weights, it is ELECTRA's
two-stage training; with samples of a fixed statistic (statistic.py) in the model's place it is the `unigram` and
`random` baselines. `Mlm` is BERT's own objective, and makes an auxiliary model where none exists. Objectives that train
their generator are in joint.py. All share data, engine, optimizer and clock, so that a difference between them can come
from little else: joint training's loss counts replaced tokens 50 times, which clipping and Adam's epsilon see. Epsilon
is made equal (Config.epsilon_for); the norm that is cut is 50 times as large there, and of two models.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from fast_electra.batching.batches import MaskedBatch
from fast_electra.batching.separation import WHOLE_ROWS
from fast_electra.kernels.vocabulary_logits import cross_entropy
from fast_electra.methods import metrics
from fast_electra.methods.temperature import temperature
from fast_electra.models import discriminator
from fast_electra.models.auxiliary import MaskedLM, build_masked_lm, mask_out
from fast_electra.settings.config import TemperatureConfig


class Exported(NamedTuple):
    """A stock model inside the trained module, and what its exported copy is compared with.

    `wrap` puts such a model into a module that takes `inputs` and gives (loss, logits, ...); `logits` are the engine's.
    `added` names a weight to which, in the export, the weight of another module is added.
    """

    model: PreTrainedModel
    wrap: Callable[[PreTrainedModel], nn.Module]
    inputs: Sequence[Tensor]
    logits: Tensor
    added: tuple[str, nn.Module] | None = None


class Objective(Protocol):
    """What the loop asks of an objective; `Inputs` below stands for the NamedTuple of tensors each has of its own."""

    def module(self, config: PreTrainedConfig, attention: str, dtype: torch.dtype) -> nn.Module:
        """The module the engine trains, with new weights: takes Inputs, gives (loss, *outputs)."""

    def inputs(self, batch: MaskedBatch, u: float) -> Any:
        """Inputs at u, the fraction of updates done."""

    def evaluation_inputs(self, batch: MaskedBatch) -> Any:
        """Inputs of a held-out batch, the same whenever asked."""

    def counts(self, outputs: Sequence[Tensor], inputs: Any) -> Tensor:
        """What a batch adds to the metrics."""

    def report(self, counts: Tensor) -> dict[str, float]:
        """The metrics of summed counts."""

    def token_scores(self, module: Any, input_ids: Tensor) -> Tensor:
        """How well each token (B, T) fits, as a log-probability; `module` is what `module()` made, or its engine."""

    def progress(self, u: float) -> dict[str, float]:
        """What moves with the run, for its log."""

    def exports(self, module: Any, batch: MaskedBatch, inputs: Any, outputs: Sequence[Tensor]) -> dict[str, Exported]:
        """Each stock model to export by the name of its folder, of which `export` is what the run is for.

        `inputs` are the evaluation inputs of `batch`, `outputs` what the engine made of them.
        """


def pseudo_log_likelihood(module: Any, input_ids: Tensor, special_ids: Tensor) -> Tensor:
    """Log P(token | all others), float32 (B, T), by a MaskedLMLoss or its engine (Salazar et al., ACL 2020).

    One token is masked at a time, the others of its word are seen: the paper's original score, without the later
    within-word variant. The first and the last place, [CLS] and [SEP], are not asked and stay 0; all others are,
    whatever they hold, since all processes have to ask equally often. `special_ids` begin with [MASK].
    """
    scores = torch.zeros(input_ids.shape, device=input_ids.device)
    for place in range(1, input_ids.shape[1] - 1):
        target = input_ids[:, place : place + 1]
        masked = input_ids.index_fill(1, torch.tensor([place], device=input_ids.device), int(special_ids[0]))
        logits = module(masked, torch.full_like(target, place), target)[1]  # (B, 1, V)
        scores[:, place] = logits.squeeze(1).float().log_softmax(dim=-1).gather(1, target).squeeze(1)
    return scores


class CorruptedBatch(NamedTuple):
    """`input_ids` (B, T) with the samples in place and `labels` (B, T), 1 where a token differs from the original.

    `position_ids` are the MaskedBatch's.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor = WHOLE_ROWS


def corrupt(batch: MaskedBatch, samples: Tensor) -> CorruptedBatch:
    """Put `samples` (B, N) at the batch's masked positions."""
    input_ids = batch.input_ids.scatter(1, batch.positions, samples)
    return CorruptedBatch(input_ids, (input_ids != batch.input_ids).to(torch.uint8), batch.position_ids)


class Sampler(Protocol):
    """Where replacements come from: nothing in it learns."""

    pad_id: int

    def sample(self, batch: MaskedBatch, temperature: float) -> Tensor:
        """A token (B, N) for each masked position."""


class Frozen:
    """Replaced-token detection on samples of something that does not learn, at a temperature that descends.

    `schedule` is None for a sampler that knows no temperature: none is then logged.
    """

    def __init__(self, auxiliary: Sampler, schedule: TemperatureConfig | None, masked_share: float) -> None:
        self.auxiliary, self.schedule, self.masked_share = auxiliary, schedule, masked_share

    def module(self, config: PreTrainedConfig, attention: str, dtype: torch.dtype) -> nn.Module:
        """A discriminator with its loss."""
        return discriminator.ReplacedTokenDetection(discriminator.build(config, attention, dtype))

    def inputs(self, batch: MaskedBatch, u: float) -> CorruptedBatch:
        """The engine's input at u, the fraction of updates done."""
        return self.inputs_at(batch, temperature(self.schedule, u) if self.schedule else 1.0)

    def inputs_at(self, batch: MaskedBatch, value: float) -> CorruptedBatch:
        """The engine's input with samples at temperature `value`."""
        return corrupt(batch, self.auxiliary.sample(batch, value))

    def evaluation_inputs(self, batch: MaskedBatch) -> CorruptedBatch:
        """Held-out figures are taken at T = 1, where they compare over a run and between runs."""
        return self.inputs_at(batch, 1.0)

    def counts(self, outputs: Sequence[Tensor], inputs: CorruptedBatch) -> Tensor:
        """What a batch adds to the metrics."""
        return metrics.rtd_counts(outputs[0], inputs.labels, inputs.input_ids != self.auxiliary.pad_id)

    def report(self, counts: Tensor) -> dict[str, float]:
        """The metrics of the summed counts."""
        return metrics.rtd_report(counts, self.masked_share)

    def token_scores(self, module: Any, input_ids: Tensor) -> Tensor:
        """Log P(original) of each token."""
        labels = torch.zeros_like(input_ids, dtype=torch.uint8)
        return discriminator.log_original(module(input_ids, labels)[1])

    def progress(self, u: float) -> dict[str, float]:
        """What moves with the run: the temperature."""
        return {"temperature": temperature(self.schedule, u)} if self.schedule else {}

    def exports(
        self, module: Any, batch: MaskedBatch, inputs: CorruptedBatch, outputs: Sequence[Tensor]
    ) -> dict[str, Exported]:
        """The discriminator."""
        return {"export": Exported(module.model, discriminator.ReplacedTokenDetection, inputs, outputs[0])}


class MaskedLMInputs(NamedTuple):
    """Tokens (B, T) with [MASK] in place, the masked `positions` (B, N) and the original tokens there (B, N).

    `position_ids` are the MaskedBatch's.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    position_ids: Tensor = WHOLE_ROWS


def masked_lm_inputs(batch: MaskedBatch, mask_id: int) -> MaskedLMInputs:
    """What a masked LM learns from `batch`.

    All masked positions hold [MASK], as those do at which an auxiliary model is asked; BERT leaves 10 % of them as they
    were and puts a random word at 10 %, ELECTRA's released code leaves 15 %.
    """
    targets = batch.input_ids.gather(1, batch.positions)
    return MaskedLMInputs(mask_out(batch, mask_id), batch.positions, targets, batch.position_ids)


class MaskedLMLoss(nn.Module):
    """What the engine trains for `mlm`: loss, logits at the masked positions, and what they add to the metrics."""

    cross_entropy: Callable[[Tensor, Tensor], Tensor] = staticmethod(cross_entropy)

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.lm = MaskedLM(model)

    @property
    def model(self) -> PreTrainedModel:
        """The stock model inside."""
        return self.lm.model

    def forward(
        self, input_ids: Tensor, positions: Tensor, targets: Tensor, position_ids: Tensor = WHOLE_ROWS
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean cross-entropy (float32), the logits (B, N, V) and metrics.mlm_counts (3,)."""
        logits = self.lm(input_ids, positions, position_ids)
        loss = self.cross_entropy(logits, targets)
        return loss, logits, metrics.mlm_counts(loss, logits, targets)


class Mlm:
    """BERT's objective: predict the masked tokens."""

    def __init__(self, mask_id: int, special_ids: Sequence[int] = ()) -> None:
        self.mask_id = mask_id
        self.special_ids = torch.tensor([mask_id, *special_ids])

    def module(self, config: PreTrainedConfig, attention: str, dtype: torch.dtype) -> nn.Module:
        """A masked LM with its loss."""
        return MaskedLMLoss(build_masked_lm(config, attention, dtype))

    def inputs(self, batch: MaskedBatch, u: float) -> MaskedLMInputs:
        """The engine's input; `u` changes nothing here."""
        return masked_lm_inputs(batch, self.mask_id)

    def evaluation_inputs(self, batch: MaskedBatch) -> MaskedLMInputs:
        """The same for held-out rows."""
        return self.inputs(batch, 1.0)

    def counts(self, outputs: Sequence[Tensor], inputs: MaskedLMInputs) -> Tensor:
        """What a batch adds to the metrics."""
        return outputs[1]

    def report(self, counts: Tensor) -> dict[str, float]:
        """The metrics of the summed counts."""
        return metrics.mlm_report(counts)

    def token_scores(self, module: Any, input_ids: Tensor) -> Tensor:
        """Pseudo-log-likelihood of each token."""
        return pseudo_log_likelihood(module, input_ids, self.special_ids.to(input_ids.device))

    def progress(self, u: float) -> dict[str, float]:
        """Nothing moves with the run."""
        return {}

    def exports(
        self, module: Any, batch: MaskedBatch, inputs: MaskedLMInputs, outputs: Sequence[Tensor]
    ) -> dict[str, Exported]:
        """The masked LM."""
        return {"export": Exported(module.model, MaskedLMLoss, inputs, outputs[0])}
