"""The rival as such scripts are written: joint ELECTRA pre-training in plain transformers and torch, no engine of ours.

Stock classes with float32 weights under bf16 autocast, eager attention, embeddings shared as one module, the LM head
on all positions, MLM + 50 x RTD, samples by `torch.multinomial` at the masked positions, gradients clipped to norm 1,
torch's AdamW with its defaults; several processes take DistributedDataParallel. The generator has ELECTRA's shape where
the recipe's encoder can have it (`joint`), and METRO's otherwise (`joint_shallow`).

Where scripts differ, the quicker way is taken, so that the rival is no straw man: the loss is taken at the masked
positions and not over all of them with ignored labels, and no metric is read back from the device. Boolean masks stay,
each of which waits for it.

It is called as an engine is, on the rows, positions and clock of the other cases (contestant.py).

Shapes: B rows, T tokens a row, N masked positions a row, V words.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    ElectraForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
)

from benchmarks import cases, costs
from benchmarks.cases import Case
from fast_electra.batching.batches import Batches, MaskedBatch
from fast_electra.engine import parallel
from fast_electra.engine.parallel import Engine
from fast_electra.methods.objectives import Objective
from fast_electra.pretraining import choices
from fast_electra.pretraining.setup_run import Run
from fast_electra.settings.config import Config
from fast_electra.settings.run_config import RunConfig

RTD_WEIGHT, CLIP_NORM = 50.0, 1.0


class PlainInputs(NamedTuple):
    """The original tokens (B, T), those with [MASK] in place, and where it stands: what a data collator hands out."""

    input_ids: Tensor
    masked_ids: Tensor
    is_masked: Tensor


class PlainJoint(nn.Module):
    """Generator and discriminator with one embedding module."""

    def __init__(self, generator: PreTrainedModel, discriminator: PreTrainedModel) -> None:
        super().__init__()
        discriminator.base_model.embeddings = generator.base_model.embeddings
        self.generator, self.discriminator = generator, discriminator

    def forward(self, input_ids: Tensor, masked_ids: Tensor, is_masked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the discriminator's logits (B, T) and the tokens (B, T) that it saw."""
        attention_mask = torch.ones_like(input_ids)
        logits = self.generator(input_ids=masked_ids, attention_mask=attention_mask).logits  # (B, T, V)
        logits, targets = logits[is_masked].float(), input_ids[is_masked]  # (B N, V), (B N,)
        mlm = F.cross_entropy(logits, targets)
        with torch.no_grad():
            samples = torch.multinomial(logits.softmax(dim=-1), 1).squeeze(-1)
        corrupted = input_ids.clone()
        corrupted[is_masked] = samples
        found = self.discriminator(input_ids=corrupted, attention_mask=attention_mask).logits.view(input_ids.shape)
        rtd = F.binary_cross_entropy_with_logits(found.float(), (corrupted != input_ids).float())
        return mlm + RTD_WEIGHT * rtd, found, corrupted


class PlainEngine:
    """The step of such a script, called as an engine is: forward, backward, and every `micro_batches` clip, AdamW."""

    def __init__(self, module: PlainJoint, dtype: torch.dtype, run: RunConfig, learning_rate: float) -> None:
        self.dtype, self.rows, self.made = dtype, run.micro_batch_rows, 0
        self.micro_batches = run.batch_rows // (run.micro_batch_rows * parallel.world_size())
        self.module = module.to(parallel.device()).train()
        self.called: nn.Module = DistributedDataParallel(module) if parallel.world_size() > 1 else module
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The module's loss and outputs; without bf16 units nothing is cast.

        Gradients are reduced over processes at the end of an update alone, which is decided here.
        """
        cast_to_bf16 = torch.autocast(parallel.device().type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)
        with cast_to_bf16, self._kept_local():
            return cast(tuple[Tensor, ...], self.called(*inputs))

    def backward(self, loss: Tensor) -> None:
        """The gradients of a loss, added to those of the update's earlier micro-batches."""
        with self._kept_local():
            (loss / self.micro_batches).backward()

    def step(self) -> None:
        """Clip and update, after the last micro-batch of an update."""
        self.made += 1
        if self.made % self.micro_batches:
            return
        nn.utils.clip_grad_norm_(self.module.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _kept_local(self) -> AbstractContextManager[None]:
        last = (self.made + 1) % self.micro_batches == 0
        spread = isinstance(self.called, DistributedDataParallel)
        return self.called.no_sync() if spread and not last else nullcontext()

    def train_micro_batch_size_per_gpu(self) -> int:
        """Rows that a process takes at a time."""
        return self.rows

    def destroy(self) -> None:
        """Let go of gradients and moments."""
        self.optimizer.zero_grad()
        self.optimizer.state.clear()


class PlainInputsMaker:
    """What the clock asks of an objective, and no more: the inputs, and no metrics."""

    def __init__(self, mask_id: int) -> None:
        self.mask_id = mask_id

    def inputs(self, batch: MaskedBatch, u: float) -> PlainInputs:
        """The batch with [MASK] in place; `u` changes nothing."""
        is_masked = torch.zeros_like(batch.input_ids, dtype=torch.bool).scatter_(1, batch.positions, True)
        return PlainInputs(batch.input_ids, batch.input_ids.masked_fill(is_masked, self.mask_id), is_masked)

    def counts(self, outputs: Sequence[Tensor], inputs: PlainInputs) -> None:
        """Such a script logs its loss now and then."""


def module(shape: PreTrainedConfig, generator_shape: PreTrainedConfig) -> PlainJoint:
    """Both models as stock classes build them, in float32 with eager attention."""
    generator = AutoModelForMaskedLM.from_config(generator_shape, attn_implementation="eager")
    electra = shape.model_type == "electra"
    make = ElectraForPreTraining._from_config if electra else AutoModelForTokenClassification.from_config
    return PlainJoint(generator, make(shape, attn_implementation="eager"))


def build(case: Case, config: Config, batches: Batches) -> Run:
    """The case ready for the clock; `config` has the shapes, the rows and the learning rate."""
    config = choices.decided(config)
    shape, generator_shape = cases.shapes(case, config)
    assert generator_shape is not None
    torch.manual_seed(config.seed)
    engine = PlainEngine(
        module(shape, generator_shape),
        choices.dtype_of(config),
        config.run,
        config.optimizer.peak_learning_rate,
    )
    words = batches.corpora[0].tokenizer
    return Run(
        config,
        batches,
        words,
        cast(Objective, PlainInputsMaker(cast(int, words.mask_token_id))),
        cast(Engine, engine),
        None,
        flops_per_token=float(cast(Any, costs.count(case)["flops_per_token"])),
        peak_flops=float("nan"),
    )
