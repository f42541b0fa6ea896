"""Learning rate and weight decay: AdamW with linear warm-up and linear decay, as pure functions."""

from typing import Any

from torch import nn

from fast_electra.settings.run_config import OptimizerConfig

_IN_16_BYTES = 8  # elements of bf16


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate for update `step` (from 0) of `steps`: up over the first `warmup_ratio`, then down to 0 at the end."""
    warmup_steps = round(config.warmup_ratio * steps)
    if step < warmup_steps:
        return config.peak_learning_rate * (step + 1) / warmup_steps
    return config.peak_learning_rate * (steps - step) / max(1, steps - warmup_steps)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay; biases and normalisation weights without (BERT's and ELECTRA's rule)."""
    named, without = laid_out(model), exempt_from_decay(model)
    exempt = [parameter for name, parameter in named if name in without]
    ids = {id(parameter) for parameter in exempt}
    return [
        {"params": [parameter for _, parameter in named if id(parameter) not in ids], "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]


def laid_out(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What is trained, by name, in the order in which ZeRO lays each group out as one block of memory.

    That is the model's own, but sizes that would have what follows begin between two 16 bytes (the bias of an LM head
    over 30,522 words) come last. Layers alike share a compiled graph, made for where the first one's weights begin; a
    joint run's models lie one behind the other.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    # Under ZeRO-3 a process holds a part of each, and says how many elements the whole has.
    return sorted(trained, key=lambda each: getattr(each[1], "ds_numel", each[1].numel()) % _IN_16_BYTES != 0)


def exempt_from_decay(model: nn.Module) -> set[str]:
    """The names of its biases and of what its normalisations, by their classes' names, hold themselves."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if name.endswith("bias") or "norm" in type(module).__name__.lower()
    }
