"""A case built for the clock as a run builds it: the same modules, the same engine, made-up words and weights.

`setup_run.build` makes the objective, the frozen auxiliary model and the DeepSpeed engine; a step is what
`pretrain.micro_step` does. Only what cannot change the time is made up: the words of the corpus, and the weights of
the auxiliary model, which is written to a folder first so that it takes the way of an existing one.
"""

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from benchmarks import cases
from benchmarks.cases import Case
from fast_electra import parallel, setup_run
from fast_electra.auxiliary import build_masked_lm
from fast_electra.batches import Batches
from fast_electra.config import Config
from fast_electra.corpus import Corpus
from fast_electra.pretrain import to_device
from fast_electra.setup_run import Run

PARTS = ("inputs", "forward", "backward", "update")


@dataclass
class RandomWords:
    """A corpus of words drawn at random, with what `Batches` asks of one."""

    tokenizer: PreTrainedTokenizerBase
    tokens: NDArray[np.uint32]
    path: str = "random words"
    tokenizer_fingerprint: str = "random words"
    fingerprint: str = "random words"
    document_starts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    @property
    def num_tokens(self) -> int:
        """How many words there are."""
        return len(self.tokens)


@dataclass
class Contestant:
    """A case ready to train, its place in the data, and the seconds of its steps so far."""

    case: Case
    run: Run
    step: int = 0
    seconds: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    static_bytes: int = 0
    peak_bytes: int = 0

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one update, over all processes."""
        return self.run.config.run.batch_rows * self.case.sequence_length

    def train_step(self) -> dict[str, float]:
        """One update; the seconds of its parts, which are only told apart after `wait`."""
        run, rows = self.run, self.run.engine.train_micro_batch_size_per_gpu()
        first = self.step * run.config.run.batch_rows + parallel.rank() * rows
        marks = [_now()]
        batch = to_device(run.batches.training(first, rows))
        inputs = run.objective.inputs(batch, min(1.0, self.step / run.config.run.steps))
        marks.append(_now())
        loss, *outputs = run.engine(*inputs)
        marks.append(_now())
        run.engine.backward(loss)
        marks.append(_now())
        run.engine.step()
        run.objective.counts(outputs, inputs)
        marks.append(_now())
        self.step += 1
        return {name: after - before for name, before, after in zip(PARTS, marks, marks[1:], strict=False)}

    def turn(self, steps: int) -> None:
        """Time `steps` updates as one turn, all processes starting together."""
        parallel.barrier()
        start = _now()
        parts = [self.train_step() for _ in range(steps)]
        parallel.barrier()
        self.seconds.append((_now() - start) / steps)
        self.parts.append({name: sum(each[name] for each in parts) / steps for name in PARTS})

    def close(self) -> None:
        """Give the engine's memory back."""
        self.run.engine.destroy()
        if self.run.generator is not None:
            self.run.generator.destroy()


def _now() -> float:
    if parallel.device().type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def build(case: Case, settings: dict[str, Any], scratch: Path, corpus: str = "", micro_batches: int = 1) -> Contestant:
    """The case on this process's device under DeepSpeed's `settings`; `scratch` is a folder for models.

    An update takes `micro_batches` micro-batches a process.

    Raises ValueError for an LM head on all positions, and where the corpus has another vocabulary.
    """
    config = _config(case, scratch, corpus, micro_batches)
    batches = _batches(case, config)
    setup_run.on_rank_zero(lambda: Path(config.output).mkdir(parents=True, exist_ok=True))
    if config.auxiliary:
        setup_run.on_rank_zero(lambda: _write_auxiliary(case, batches, Path(config.auxiliary)))
    return Contestant(case, setup_run.build(config, settings, batches))


def _config(case: Case, scratch: Path, corpus: str, micro_batches: int) -> Config:
    config = cases.config(case)
    if case.head != "masked":
        raise ValueError(f"case {case.name!r}: training runs the LM head on masked positions only; measure that")
    rows, auxiliary = config.run.micro_batch_rows, f"auxiliary-{case.recipe}-{case.sequence_length}-{case.vocab_size}"
    return dataclasses.replace(
        config,
        output=str(scratch / case.name.replace("/", "-")),
        corpus=corpus,
        auxiliary=str(scratch / auxiliary) if config.needs_auxiliary else "",
        auxiliary_gate=False,
        data=dataclasses.replace(config.data, held_out_rows=rows),
        run=dataclasses.replace(config.run, batch_rows=rows * micro_batches * parallel.world_size(), steps=10**6),
    )


def _batches(case: Case, config: Config) -> Batches:
    if not config.corpus:
        tokenizer = cases.tokenizer(case.vocab_size)
        drawn = np.random.default_rng(0).integers(len(cases.SPECIAL), case.vocab_size, 10**6, dtype=np.uint32)
        return Batches([(cast(Corpus, RandomWords(tokenizer, drawn)), 1.0)], config.data, config.seed)
    batches = setup_run.open_batches(config)
    words = len(batches.corpora[0].tokenizer)
    if words != case.vocab_size:
        raise ValueError(f"case {case.name!r}: corpus {config.corpus!r} has a vocabulary of {words}; name that number")
    return batches


def _write_auxiliary(case: Case, batches: Batches, folder: Path) -> None:
    _, shape = cases.shapes(case)
    assert shape is not None
    if not folder.exists():
        build_masked_lm(shape, "sdpa", torch.bfloat16).save_pretrained(folder)
        batches.corpora[0].tokenizer.save_pretrained(folder)
