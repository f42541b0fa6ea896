"""Learning rate and weight decay: AdamW with linear warm-up and linear decay, as pure functions."""

from typing import Any

from torch import nn

from fast_electra.run_config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate for update `step` (from 0) of `steps`: up over the first `warmup_ratio`, then down to 0 at the end."""
    warmup_steps = round(config.warmup_ratio * steps)
    if step < warmup_steps:
        return config.peak_learning_rate * (step + 1) / warmup_steps
    return config.peak_learning_rate * (steps - step) / max(1, steps - warmup_steps)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with weight decay; biases and normalisation weights without (BERT's and ELECTRA's rule)."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    without = exempt_from_decay(model)
    exempt = [parameter for name, parameter in named if name in without]
    ids = {id(parameter) for parameter in exempt}
    return [
        {"params": [parameter for _, parameter in named if id(parameter) not in ids], "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]


def exempt_from_decay(model: nn.Module) -> set[str]:
    """The names of its biases and of what its normalisations, by their classes' names, hold themselves."""
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if name.endswith("bias") or "norm" in type(module).__name__.lower()
    }
