"""One training step of a case in plain torch, on fake or real tensors, with every tensor's bytes counted.

It is what one process does under DeepSpeed, without the engine: bf16 weights and gradients, the objective's own
inputs and module, float32 weights with two Adam moments, gradients summed in float32 over an update's micro-batches.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.memory.live_memory import LiveMemory
from fast_electra.batching.batches import MaskedBatch
from fast_electra.methods import decoupled, joint, objectives
from fast_electra.methods.objectives import Objective
from fast_electra.models import auxiliary
from fast_electra.models.auxiliary import Auxiliary, MaskedLM, build_masked_lm
from fast_electra.models.encoder import recompute_activations
from fast_electra.settings.config import Config


def torch_uniforms(batch: MaskedBatch, seed: int) -> Tensor:
    """Uniforms (B, N) of torch's own: hashes made on the host need real row numbers, which a fake batch lacks."""
    return torch.rand(batch.positions.shape, device=batch.positions.device)


@contextmanager
def _torch_uniforms_throughout() -> Iterator[None]:
    with ExitStack() as patches:
        for module in (auxiliary, joint, decoupled):
            patches.enter_context(mock.patch.object(module, "uniforms", torch_uniforms))
        yield


class Given:
    """Replacements that come with the batch, as replacement paths and fixed statistics give them: any words."""

    def __init__(self, vocab_size: int, pad_id: int) -> None:
        self.vocab_size, self.pad_id = vocab_size, pad_id

    def sample(self, batch: MaskedBatch, temperature: float) -> Tensor:
        """A word (B, N) for each masked position; the temperature changes nothing."""
        return torch.randint_like(batch.positions, self.vocab_size)


@contextmanager
def empty_weights() -> Iterator[None]:
    """Inside, stock models are built without drawing their weights, which fake tensors cannot do; ties are made."""
    with mock.patch.object(PreTrainedModel, "initialize_weights", lambda self: None):
        yield


def build(case: Case, device: torch.device, attention: str = "sdpa") -> tuple[Objective, nn.Module, nn.Module | None]:
    """The case's objective, the module that is trained and the frozen auxiliary model if there is one."""
    words, settings = cases.tokenizer(case.vocab_size), cases.config(case)
    settings = _without_attention_dropout(settings) if device.type == "cpu" else settings
    shape, generator_shape = cases.shapes(case, settings)
    frozen: nn.Module | None = None
    objective: Objective
    with torch.device(device):
        if case.objective == "mlm":
            objective = objectives.Mlm(words.mask_token_id)
        elif case.objective == "joint_decoupled":
            objective = decoupled.Decoupled(settings, words)
        elif case.objective in joint.SHARE:
            objective = joint.Joint(settings, words)
        elif generator_shape is None:
            objective = objectives.Frozen(Given(case.vocab_size, words.pad_token_id), None, settings.data.mask_rate)
        else:
            model = build_masked_lm(generator_shape, attention, torch.bfloat16)
            frozen = MaskedLM(model).eval().requires_grad_(False)
            sampler = Auxiliary(frozen, words, settings.seed)
            objective = objectives.Frozen(sampler, settings.temperature, settings.data.mask_rate)
        module = objective.module(shape, attention, torch.bfloat16).train()
    if case.activation_checkpointing:
        recompute_activations(module)
    return objective, module, frozen


def _without_attention_dropout(settings: Config) -> Config:
    """A GPU's fused attention keeps no mask of its dropout; a CPU has no fused kernel with dropout to stand for it."""
    main, generator = settings.encoder, settings.auxiliary_model
    return replace(
        settings,
        encoder=replace(main, attention_dropout=0.0),
        auxiliary_model=replace(generator, encoder=replace(generator.encoder, attention_dropout=0.0)),
    )


def batch(case: Case, device: torch.device) -> MaskedBatch:
    """A micro-batch of random words."""
    settings = cases.config(case)
    num_rows, data = settings.run.micro_batch_rows, settings.data
    with torch.device(device):
        input_ids = torch.randint(len(cases.SPECIAL), case.vocab_size, (num_rows, data.sequence_length))
        positions = torch.arange(1, data.num_masked + 1).repeat(num_rows, 1)
        # Rows left whole, by a tensor that is as fake as the others where sizes alone are simulated.
        return MaskedBatch(input_ids, positions, torch.arange(num_rows), torch.empty(0, 0, dtype=torch.int64))


class Trained:
    """A module with what training keeps beside it, called as an engine is: backward sums, step updates."""

    def __init__(self, module: nn.Module, memory: LiveMemory) -> None:
        self.module, self.memory = module, memory
        self.weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.masters = [weight.detach().float() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-4, fused=True)
        for master in self.masters:
            master.grad = torch.zeros_like(master)
        self.optimizer.step()  # makes the moments
        moments = (moment for state in self.optimizer.state.values() for moment in state.values())
        memory.hold(module.state_dict().values(), "parameters")
        memory.hold([*self.masters, *moments], "optimizer")
        memory.hold([master.grad for master in self.masters], "gradients")
        memory.watch_gradients(module)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The module's loss and outputs; their memory is counted from here on as activations."""
        outputs: tuple[Tensor, ...] = self.module(*inputs)
        return outputs

    def backward(self, loss: Tensor) -> None:
        """The gradients of a loss."""
        with self.memory.phase("backward", "temporary"):
            loss.backward()

    def step(self) -> None:
        """Copy the gradients to their float32 sums, as the first of an update are, and update the weights."""
        with self.memory.phase("update", "temporary"):
            for weight, master in zip(self.weights, self.masters, strict=True):
                assert weight.grad is not None
                master.grad.copy_(weight.grad)
                weight.grad = None
            self.optimizer.step()
            for weight, master in zip(self.weights, self.masters, strict=True):
                weight.detach().copy_(master)


def run(case: Case, device: torch.device, memory: LiveMemory, attention: str = "sdpa") -> list[nn.Module]:
    """A micro-batch and the update after it; `memory` has the peaks of both. Returns the modules that are trained."""
    with empty_weights() if isinstance(torch.empty(0), FakeTensor) else nullcontext():
        objective, module, frozen = build(case, device, attention)
        engines = [Trained(module, memory)]
        if isinstance(objective, decoupled.Decoupled):
            with torch.device(device):
                generator = objective.generator_module(attention, torch.bfloat16).train()
            if case.activation_checkpointing:
                recompute_activations(generator)
            objective.generator = Trained(generator, memory)
            engines.append(objective.generator)
    rows = batch(case, device)
    memory.hold(frozen.state_dict().values() if frozen is not None else [], "auxiliary")
    memory.hold(rows, "activations")
    with memory, _torch_uniforms_throughout():
        with memory.phase("backward", "activations"):
            loss = engines[0](*objective.inputs(rows, 0.5))[0]
        engines[0].backward(loss)
        engines[0].step()
    return [each.module for each in engines]
