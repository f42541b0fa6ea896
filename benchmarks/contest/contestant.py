"""A case built for the clock as a run builds it: the same modules, the same engine, made-up words and weights.

`setup_run.build` makes the objective, the frozen auxiliary model and the DeepSpeed engine; a step is what
`pretrain.micro_step` does. Only what cannot change the time is made up (material.py): the auxiliary model is written to
a folder first so that it takes the way of an existing one, and the paths of `replay` are computed with it and stored.
"""

import dataclasses
import time
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.contest import material, plain_rival
from fast_electra.batching.batches import Batches, MaskedBatch, prefetch
from fast_electra.engine import deepspeed_config, parallel
from fast_electra.kernels import compilation, precision
from fast_electra.pretraining import choices, setup_run
from fast_electra.pretraining.precompute import Precomputation, provenance_of
from fast_electra.pretraining.setup_run import Run
from fast_electra.settings.config import Config

PARTS = ("inputs", "forward", "backward", "update")
_UPDATES = 16  # whose rows come round again


@dataclass
class Contestant:
    """A case ready to train, its place in the data, and what was measured of its turns so far."""

    case: Case
    run: Run
    micro_step: int = 0
    seconds: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    products: list[tuple[float, float]] = field(default_factory=list)  # FLOP/s before and after each turn
    static_bytes: int = 0
    peak_bytes: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return choices.dtype_of(self.run.config)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one update, over all processes."""
        return self.run.config.run.batch_rows * self.case.sequence_length

    @property
    def micro_batches(self) -> int:
        """How many make an update."""
        rows = self.run.engine.train_micro_batch_size_per_gpu() * parallel.world_size()
        return self.run.config.run.batch_rows // rows

    def conditions(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What a row says of how it was run, under DeepSpeed's `settings`, and on what."""
        return {
            **self.case.fields,
            "micro_batch_rows": self.run.engine.train_micro_batch_size_per_gpu(),
            "micro_batches": self.micro_batches,
            "device": torch.cuda.get_device_name() if parallel.device().type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "zero_stage": 0 if self.case.objective == cases.PLAIN else deepspeed_config.zero_stage(settings),
            "num_processes": parallel.world_size(),
            "dtype": precision.name(self.dtype),
            "compiled": self.run.config.run.compile,
        }

    def update(self) -> dict[str, float]:
        """One update; the seconds of its parts."""
        return _of_an_update([self.train_step() for _ in range(self.micro_batches)])

    def train_step(self, batch: MaskedBatch | None = None, wait: bool = True) -> dict[str, float]:
        """One micro-batch, `batch` if it was made before; the seconds of its parts, on a GPU true only with `wait`."""
        run, clock = self.run, now if wait else time.perf_counter
        marks = [clock()]
        made = run.batches.training(*self._span(self.micro_step)) if batch is None else batch
        u = min(1.0, self.micro_step / (self.micro_batches * run.config.run.steps))
        inputs = run.objective.inputs(made.to(parallel.device()), u)
        marks.append(clock())
        loss, *outputs = run.engine(*inputs)
        marks.append(clock())
        run.engine.backward(loss)
        marks.append(clock())
        run.engine.step()
        run.objective.counts(outputs, inputs)
        marks.append(clock())
        self.micro_step += 1
        return {name: after - before for name, before, after in zip(PARTS, marks, marks[1:], strict=False)}

    def turn(self, steps: int) -> None:
        """Time `steps` updates as one turn, all processes starting together, batches made ahead as a run makes them.

        Nothing waits for a GPU between them; one more update then tells how long their parts take.
        """
        on_gpu = parallel.device().type != "cpu"
        spans = [self._span(self.micro_step + each) for each in range(steps * self.micro_batches)]
        with closing(prefetch(self.run.batches, spans, pin=on_gpu)) as batches:
            first = next(batches)
            parallel.barrier()
            start = now()
            parts = [self.train_step(batch, wait=False) for batch in chain([first], batches)]
            parallel.barrier()
            self.seconds.append((now() - start) / steps)
        self.parts.append(self.update() if on_gpu else _of_an_update(parts, steps))

    def _span(self, micro_step: int) -> tuple[int, int]:
        """The rows of a micro-batch on this process: the first, and how many."""
        rows = self.run.engine.train_micro_batch_size_per_gpu()
        return (micro_step * parallel.world_size() + parallel.rank()) * rows, rows

    def close(self) -> None:
        """Give the engine's memory back."""
        self.run.engine.destroy()
        if self.run.generator is not None:
            self.run.generator.destroy()


def _of_an_update(micro_steps: list[dict[str, float]], updates: int = 1) -> dict[str, float]:
    """Seconds of the parts of an update, from those of all micro-batches of so many."""
    return {name: sum(each[name] for each in micro_steps) / updates for name in PARTS}


def now() -> float:
    """Seconds, when the device has done all it was given."""
    if parallel.device().type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def fail_beyond_most_graphs() -> None:
    """Contestants share code that is compiled: past dynamo's limit of graphs one would run as it is and not say so."""
    torch._dynamo.config.recompile_limit = compilation.MOST_GRAPHS
    torch._dynamo.config.fail_on_recompile_limit_hit = True


@dataclass(frozen=True)
class Variant:
    """How a case is run: micro-batches of an update a process, documents kept apart or not, compiled or not."""

    micro_batches: int = 1
    separate_documents: bool = False
    compiled: bool = False


def build(
    case: Case, settings: dict[str, Any], scratch: Path, corpus: str = "", variant: Variant = Variant()
) -> Contestant:
    """The case on this process's device under DeepSpeed's `settings`; `scratch` is a folder for models.

    The plain rival takes no `settings` and is never compiled. Raises ValueError for an LM head on all positions in any
    other case, and where the corpus has another vocabulary.
    """
    config = _config(case, scratch, variant)
    num_rows = _UPDATES * config.run.batch_rows + config.data.held_out_rows
    batches = material.few_rows(case, config.data, num_rows, corpus)
    if case.objective == cases.PLAIN:
        return Contestant(case, plain_rival.build(case, config, batches))
    folder = scratch / f"auxiliary-{case.recipe}-{case.sequence_length}-{case.vocab_size}"
    setup_run.on_rank_zero(lambda: Path(config.output).mkdir(parents=True, exist_ok=True))
    if config.needs_auxiliary or config.objective == "replay":
        setup_run.on_rank_zero(lambda: material.write_auxiliary(case, batches, folder))
    if config.needs_auxiliary:
        config = dataclasses.replace(config, auxiliary=str(folder))
    if config.objective == "replay":
        _store_paths(config, batches, str(folder))
    return Contestant(case, setup_run.build(config, settings, batches))


def _config(case: Case, scratch: Path, variant: Variant) -> Config:
    config, output, plain = cases.config(case), scratch / case.name.replace("/", "-"), case.objective == cases.PLAIN
    if case.head != "masked" and not plain:
        raise ValueError(f"case {case.name!r}: training runs the LM head on masked positions only; measure that")
    rows, draws = config.run.micro_batch_rows, int(config.objective == "replay")
    return dataclasses.replace(
        config,
        output=str(output),
        replacements=str(output / "paths") if config.replacements else "",
        auxiliary_gate=False,
        data=dataclasses.replace(
            config.data, held_out_rows=rows, num_draws=draws, separate_documents=variant.separate_documents
        ),
        run=dataclasses.replace(
            config.run,
            batch_rows=rows * variant.micro_batches * parallel.world_size(),
            steps=10**6,
            compile=variant.compiled and not plain,
        ),
    )


def _store_paths(config: Config, batches: Batches, auxiliary: str) -> None:
    """The paths of all rows by the auxiliary model, which is let go of afterwards."""
    frozen = dataclasses.replace(config, objective="frozen", auxiliary=auxiliary, replacements="")
    sampler, *_ = setup_run.open_auxiliary(frozen, batches.corpora[0].tokenizer, batches)
    work = Precomputation(sampler, batches, provenance_of(batches, "weights at random", material.GRID))
    setup_run.on_rank_zero(lambda: material.store_paths(Path(config.replacements), work))
