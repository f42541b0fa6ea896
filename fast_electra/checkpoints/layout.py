"""How the state of a run's engines lies in a checkpoint: what lies alike is read as it is, all else converted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import xxhash

from fast_electra.engine import optim, parallel


class Layout(NamedTuple):
    """Over how many processes, by which ZeRO stage and in which order of weights (a hash of their names)."""

    num_processes: int
    zero_stage: int
    order: str


def of(engines: Sequence[parallel.Engine]) -> Layout:
    """The layout in which these engines, of the run and of its generator if that has one, save and load by themselves.

    `order` is `optim.laid_out`'s, which DeepSpeed does not look at when it loads the blocks of memory.
    """
    names = (name for engine in engines for name, _ in optim.laid_out(engine.module))
    return Layout(parallel.world_size(), engines[0].zero_optimization_stage(), _digest(names))


def recorded(manifest: Mapping[str, Any], engines: Sequence[parallel.Engine]) -> Layout:
    """The layout of a checkpoint. What an old manifest leaves out: these engines' stage, the models' own order."""
    weights = (each for engine in engines for each in engine.module.named_parameters())
    plain = _digest(name for name, weight in weights if weight.requires_grad)
    stage = manifest.get("zero_stage", engines[0].zero_optimization_stage())
    return Layout(manifest["num_processes"], stage, manifest.get("order", plain))


def _digest(names: Iterable[str]) -> str:
    return xxhash.xxh3_128("\n".join(names).encode()).hexdigest()
