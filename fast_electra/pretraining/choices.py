"""What a config leaves to the machine ("auto"), settled by the first process so that all of them compute alike.

A run that trains its auxiliary model first decides for both: it asks once, by its own plan.
"""

import dataclasses

import torch

from fast_electra.engine import parallel
from fast_electra.kernels import compilation, precision
from fast_electra.settings.config import Config

# Of a process on a CPU: below it compiling, a minute where nothing is cached, takes about what it saves, or more.
WORTH_COMPILING = 3e14
_TRAINING_FLOPS = 6  # of a weight and a token, forward and backward


def dtype_of(config: Config) -> torch.dtype:
    """What the run's weights and activations are computed in."""
    return precision.dtype(config.run.dtype, parallel.device().type == "cpu")


def decided(config: Config) -> Config:
    """The config with "auto" replaced. All processes take part."""
    run, compiled = config.run, config.run.compile
    if compiled == "auto":
        compiled = is_worth_compiling(config) and not compilation.missing(parallel.device())
    dtype, compiled = parallel.from_rank_zero((precision.name(dtype_of(config)), compiled))
    config = dataclasses.replace(config, run=dataclasses.replace(run, dtype=dtype, compile=compiled))
    parallel.agree_on_attention(config.encoder, config.data.sequence_length, dtype_of(config))
    return config


def note_of_compiling(asked: Config, config: Config) -> str:
    """What the first process should say of a run that `asked` and was `decided` upon, or nothing."""
    if config.run.compile:
        return "what trains is compiled: the first update and evaluation take up to a minute longer, at the first start"
    if asked.run.compile != "auto" or not is_worth_compiling(config):
        return ""
    return f"nothing is compiled, which would be faster, for want of {compilation.missing(parallel.device())}"


def is_worth_compiling(config: Config) -> bool:
    """Whether a run's plan is long enough: told by the config and the processes alone, so that a resumed one agrees."""
    enough = WORTH_COMPILING * parallel.world_size() if parallel.device().type == "cpu" else 0.0
    return planned_flops(config) >= enough


def planned_flops(config: Config) -> float:
    """FLOPs that the run's plan gives the trained encoder's layers, its vocabulary and attention scores aside."""
    encoder = config.encoder
    projections = 3 if encoder.model_type == "modernbert" else 2  # gated or not
    weights = 4 * encoder.hidden_size**2 + projections * encoder.hidden_size * encoder.intermediate_size
    tokens = config.run.steps * config.run.batch_rows * config.data.sequence_length
    return float(_TRAINING_FLOPS * encoder.num_layers * weights * tokens)
