"""What the auxiliary model runs on: the fastest engine that gives what the plain one gives.

`plain` is DeepSpeed-Inference's engine around the stock model, and every other is held against it on rows of the
corpus: the share of masked positions whose most likely token agrees, and the mean distance of the log-probabilities of
the tokens that were there. `compiled` is the plain engine through torch.compile, and the drawing of samples with it;
`injected` DeepSpeed's own kernels (injection.py). One that cannot be built, or disagrees, is left out, and the run says
why. On a CPU `auto` means `plain` unless what trains is compiled: a shorter run would not earn the seconds of a trial.
Engines round differently, so that a resumed run takes the engine that it began with.

`auto` leaves `injected` out: on the GPU where it ran it took twice the plain engine's time, after a minute of building,
and a kernel that reads where it must not ends the process that tries it.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn

from fast_electra.batching.batches import Batches, MaskedBatch
from fast_electra.engine import injection, parallel, torchs_linear
from fast_electra.models.auxiliary import ASKED_ROWS, MaskedLM, mask_out, rows_at_once
from fast_electra.runs import preemption, run_folder
from fast_electra.settings.config import Config

LEAST_AGREEMENT, MOST_DISTANCE = 0.98, 0.05
_NAMED_ONLY = "injected"
_ANOTHER = "take plain, or auto"
_OF_THE_RUN = (
    "the run began with it, and engines round differently: go on where it can be had, or begin anew with another "
    "--output"
)
TURNS = 7


@dataclass(frozen=True)
class Trial:
    """How an engine did: agreement with the plain one, seconds of a forward pass, and why it cannot serve if so."""

    name: str
    agreement: float = 1.0
    distance: float = 0.0
    seconds: float = 0.0
    refused: str = ""

    def __str__(self) -> str:
        if self.refused:
            return f"{self.name}: {self.refused}"
        parity = f"{self.agreement:.2%} of the most likely tokens agree, log-probabilities within {self.distance:.4f}"
        return f"{self.name}: {self.seconds * 1e3:.1f} ms a forward pass, {parity}"


@dataclass(frozen=True)
class Choice:
    """The engine taken, called as MaskedLM is, its name, and what was tried."""

    engine: nn.Module
    name: str
    trials: tuple[Trial, ...] = ()


def for_run(module: MaskedLM, batches: Batches, mask_id: int, config: Config, dtype: torch.dtype) -> Choice:
    """The engine that a run's config asks for, or that the run began with. Raises ValueError where it cannot serve."""
    began_with = run_folder.bound(config.output).get("auxiliary_engine", "auto")
    wanted = began_with if config.auxiliary_engine == "auto" else config.auxiliary_engine
    asked = (config.run.micro_batch_rows, ASKED_ROWS)
    device, masked = parallel.device(), config.data.num_masked
    if wanted == "auto" and device.type == "cpu" and not config.run.compile:
        wanted = "plain"
    together = [rows_at_once(rows, masked, batches.vocab_size, device.type) for rows in asked]
    batch = batches.training(0, max(together)).to(device)
    is_bound = wanted == began_with != "auto"
    choice = choose(module, batch, mask_id, dtype, wanted, _OF_THE_RUN if is_bound else _ANOTHER)
    if parallel.rank() == 0:
        for each in choice.trials:
            print(f"engine of the auxiliary model: {each}", flush=True)  # noqa: T201
    return choice


def compare(module: MaskedLM, batch: MaskedBatch, mask_id: int, dtype: torch.dtype) -> tuple[Trial, ...]:
    """How each engine does on `batch`, whatever the device."""
    return _tried(module, batch, mask_id, dtype, _builders(module, batch, dtype))[1]


def choose(
    module: MaskedLM,
    batch: MaskedBatch,
    mask_id: int,
    dtype: torch.dtype,
    wanted: str = "auto",
    remedy: str = _ANOTHER,
) -> Choice:
    """The engine of this name, or of `auto` the fastest that serves; `batch` has as many rows as any will have.

    All processes take the first one's choice. Raises ValueError, which ends with the remedy, when the one named cannot
    serve.
    """
    if wanted == "plain":
        return Choice(parallel.inference_engine(module, dtype), "plain")
    others = _builders(module, batch, dtype)
    names = set(others) - {_NAMED_ONLY} if wanted == "auto" else {wanted}
    tried = {name: build for name, build in others.items() if name in names}
    built, trials = _tried(module, batch, mask_id, dtype, tried)
    serving = {each.name: each.seconds for each in trials if not each.refused}
    if wanted not in ("auto", *serving):
        raise ValueError(f"auxiliary_engine = {wanted!r}: {trials[-1].refused}; {remedy}")
    fastest = min(serving, key=lambda name: serving[name]) if wanted == "auto" else wanted
    name = str(parallel.from_rank_zero(fastest))
    return Choice(built[name], name, trials)


def _builders(module: MaskedLM, batch: MaskedBatch, dtype: torch.dtype) -> dict[str, Callable[[], nn.Module]]:
    """What makes each engine beside the plain one, whose module stays as it is."""
    rows, length = batch.input_ids.shape

    def compiled() -> nn.Module:
        made: nn.Module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
        return made

    def injected() -> nn.Module:
        return injection.inject(copy.deepcopy(module), module.model.config, dtype, rows, length)

    return {"compiled": compiled, "injected": injected}


def _tried(
    module: MaskedLM, batch: MaskedBatch, mask_id: int, dtype: torch.dtype, others: dict[str, Callable[[], nn.Module]]
) -> tuple[dict[str, nn.Module], tuple[Trial, ...]]:
    """The engines that serve on all processes, the plain one first, and how each did."""
    plain = parallel.inference_engine(module, dtype)
    inputs = (mask_out(batch, mask_id), batch.positions, batch.position_ids)
    expected = _log_probabilities(plain, inputs)
    built: dict[str, nn.Module] = {"plain": plain}
    trials = [Trial("plain")]
    for name, build in others.items():
        trial = _try(name, build, inputs, expected, batch, built)
        if parallel.anywhere(bool(trial.refused)) and not trial.refused:
            trial = Trial(name, refused="it cannot serve on another process")
        trials.append(trial)
    seconds = _seconds_in_turn(built, inputs)
    timed = tuple(replace(each, seconds=seconds.get(each.name, 0.0)) for each in trials)
    return {each.name: built[each.name] for each in timed if not each.refused}, timed


def _try(
    name: str,
    build: Callable[[], nn.Module],
    inputs: tuple[Tensor, ...],
    expected: Tensor,
    batch: MaskedBatch,
    built: dict[str, nn.Module],
) -> Trial:
    """Build an engine and hold it against the log-probabilities (B, N, V) of the plain one; its seconds come later."""
    try:
        with preemption.compiling():
            engine = torchs_linear.kept(build())
            got = _log_probabilities(engine, inputs)
    except (ValueError, RuntimeError) as error:
        return Trial(name, refused=str(error).split("\n")[0])
    built[name] = engine
    agreement = float((got.argmax(-1) == expected.argmax(-1)).double().mean())
    target = batch.input_ids.gather(1, batch.positions).unsqueeze(-1)
    distance = float((got - expected).gather(-1, target).abs().mean())
    alike = agreement >= LEAST_AGREEMENT and distance <= MOST_DISTANCE
    parity = f"{agreement:.2%} of its most likely tokens agree, its log-probabilities are {distance:.4f} away"
    return Trial(name, agreement, distance, refused="" if alike else f"{parity}: not what the plain engine gives")


@torch.no_grad()
def _log_probabilities(engine: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return engine(*inputs).float().log_softmax(dim=-1)


@torch.no_grad()
def _seconds_in_turn(engines: dict[str, nn.Module], inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """The median of plain's forward passes and, of each other engine, what its passes took of the plain ones beside
    them, in the median: what slows a machine down slows all of a turn."""
    turns: list[dict[str, float]] = []
    for _ in range(TURNS):
        turns.append({})
        for name, engine in engines.items():
            start = time.perf_counter()
            float(engine(*inputs)[0, 0, 0])  # waits for the device
            turns[-1][name] = time.perf_counter() - start
    usual = median(turn["plain"] for turn in turns)
    return {name: usual * median(turn[name] / turn["plain"] for turn in turns) for name in engines}
