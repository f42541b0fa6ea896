"""The loop: fetch, objective, forward, backward, step, log, evaluate, save.

It knows where it is by two integers, step and rows seen. Same command, same folder: a second start goes on where the
newest checkpoint ends, or returns the summary of what is done. Told to stop (preemption.py), it finishes the step and
saves: all processes at the same step.
"""

import dataclasses
import gc
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from fast_electra.batching.batches import MaskedBatch, prefetch
from fast_electra.batching.randomness import Stream, bits
from fast_electra.checkpoints import checkpoint
from fast_electra.checkpoints.checkpoint import Position
from fast_electra.checkpoints.export import evaluated, export, for_rows_of
from fast_electra.costs import flops
from fast_electra.engine import deepspeed_config, optim, parallel
from fast_electra.engine.fetching import in_turns
from fast_electra.engine.stop_vote import StopVote
from fast_electra.evaluation import blimp
from fast_electra.methods.divergence import broken_throughout
from fast_electra.methods.replay import Replay
from fast_electra.models import initial_weights
from fast_electra.pretraining import choices, setup_run
from fast_electra.pretraining.progress import Progress, forget_start_up, peak_memory_gib
from fast_electra.pretraining.setup_run import Run
from fast_electra.runs import failure, preemption, run_folder, run_state
from fast_electra.runs.watchdog import LONG, Watchdog, patience_minutes
from fast_electra.settings.config import Config


def pretrain(config: Config, settings: dict[str, Any]) -> dict[str, Any]:
    """Train `config` to its end under DeepSpeed's `settings`; returns the summary. All processes take part.

    An auxiliary model is trained first when the objective needs one and none is named. Raises ValueError, before
    anything is trained, when the input does not fit together. A start that was told to stop returns what
    `summary.stopped` describes, with "preempted" true.
    """
    watchdog = Watchdog(config.run.hang_minutes)
    try:
        return _pretrain(config, settings, watchdog)
    finally:
        watchdog.stop()


def _pretrain(config: Config, settings: dict[str, Any], watchdog: Watchdog) -> dict[str, Any]:
    """The same, watched."""
    watchdog.begin("joining the other processes")
    parallel.start(patience_minutes(config.run.hang_minutes))
    asked, config = config, choices.decided(config)
    deepspeed_config.fill(settings, config, parallel.world_size(), parallel.device().type == "cpu")
    small_pieces = deepspeed_config.note_of_small_pieces(config, parallel.world_size())
    notes = (small_pieces, choices.note_of_compiling(asked, config))
    for note in filter(None, notes if parallel.rank() == 0 else ()):
        print(f"note: {note}", flush=True)  # noqa: T201
    setup_run.on_rank_zero(lambda: run_folder.claim(config))
    watchdog.folder = str(Path(config.output).resolve())  # a conversion of a checkpoint works elsewhere
    done = run_folder.read_summary(config.output)
    if done is not None:
        return done | {"already_done": True}
    try:
        with failure.noted(config.output):
            result = _go_on(config, settings, watchdog)
    except preemption.Preempted:
        return {"preempted": True, "output": config.output}
    except (ValueError, OSError):
        if parallel.rank() == 0:
            run_folder.release(config)
        raise
    if parallel.rank() == 0:
        ended = run_state.PREEMPTED if result.get("preempted") else run_state.STOPPED
        run_state.end(config.output, run_state.FINISHED if "export" in result else ended)
    return result


def _go_on(config: Config, settings: dict[str, Any], watchdog: Watchdog) -> dict[str, Any]:
    """The same in a folder that is claimed and not done."""
    watchdog.begin("reading and verifying the corpora", LONG)
    began = psutil.Process().create_time()
    batches = setup_run.open_batches(config)
    config = dataclasses.replace(config, corpus=config.corpus or setup_run.documentation_corpus(config))
    if config.needs_auxiliary and not config.auxiliary:
        in_turns(lambda: initial_weights.foresee(config, batches.corpora[0].tokenizer))
        watchdog.stop()
        first = config.for_auxiliary()
        made = pretrain(first, settings)
        if "export" not in made:
            return made
        gc.collect()  # what is left of that run lies in cycles
        torch.cuda.empty_cache()
        here = Path(first.output) / "export"  # not where its summary says: the folder may have moved
        config, began = dataclasses.replace(config, auxiliary=str(here)), time.time()
    watchdog.begin("building the model", LONG if config.objective == "replay" else 1.0)
    setup_run.stop_if_preempted()
    run = setup_run.build(config, settings, batches)
    run.began = began
    watchdog.begin("reading the checkpoint", LONG)
    run.position = checkpoint.restore(run.engine, Path(config.output) / "checkpoints", run.generator)
    setup_run.stop_if_preempted()
    progress = Progress(run, watchdog)
    try:
        preempted = train(run, progress)
        if preempted or run.position.step < config.run.steps:
            return {"preempted": preempted, "stopped_at_step": run.position.step, "output": config.output}
        summary = finish(run, progress)
    finally:
        progress.close()
    for engine in run.engines:
        engine.destroy()
        engine.optimizer.optimizer.state.clear()  # under ZeRO-3 DeepSpeed's own lists keep the engine alive
    return summary


def train(run: Run, progress: Progress) -> bool:
    """Update by update to the end of the run, or of this start; returns whether it was told to stop."""
    config = run.config
    end = min(config.run.steps, config.run.stop_at_step or config.run.steps)
    foresee = run.objective.foresee if isinstance(run.objective, Replay) else None
    ahead = prefetch(run.batches, spans(run), parallel.device().type == "cuda", foresee)
    vote, preempted, saved = StopVote(patience_minutes(config.run.hang_minutes)), False, run.position
    forget_start_up()
    progress.watchdog.begin("starting to train", LONG)
    with closing(ahead) as batches, preemption.ctrl_c_saves():  # its threads end with the loop, however that ends
        while run.position.step < end and not preempted:
            step = run.position.step
            torch.manual_seed(int(bits(config.seed, Stream.STEP, step, parallel.rank())[0] >> 1))
            set_learning_rates(run, step)
            for _ in range(run.engine.gradient_accumulation_steps()):
                micro_step(run, next(batches), step / config.run.steps, progress)
            progress.end_update()
            run.position = Position(step + 1, run.position.rows_seen + config.run.batch_rows, progress.elapsed())
            progress.bar.update()
            preempted = vote.ask(preemption.requested())
            ended = preempted or run.position.step == end
            due = ended or run.position.step % config.run.save_every == 0
            if ended or run.position.step % config.run.log_every == 0:
                progress.log_step()
                due = due or is_overdue(run, saved)
            evaluates = run.position.step < config.run.steps and run.position.step % config.run.evaluate_every == 0
            with progress.paused():
                if evaluates or due:
                    progress.settle()
                if evaluates:
                    progress.write({"step": run.position.step, "held_out": evaluate(run)})
                if due:
                    progress.health.require_sound_weights()
                    save(run)
                    saved = run.position
    progress.bar.close()
    return vote.close() or preempted


def set_learning_rates(run: Run, step: int) -> None:
    """The schedule's rate for update `step`, and the generator's share of it where it has an engine of its own."""
    rate = optim.learning_rate(run.config.optimizer, step, run.config.run.steps)
    parallel.set_learning_rate(run.engine, rate)
    if run.generator is not None:
        parallel.set_learning_rate(run.generator, rate * run.config.generator.learning_rate_ratio)


def spans(run: Run) -> Iterator[tuple[int, int]]:
    """(first sample, count) of each micro-batch of this process, from where the run is to its end."""
    config, micro = run.config, run.engine.train_micro_batch_size_per_gpu()
    share = config.run.batch_rows // parallel.world_size()
    for step in range(run.position.step, config.run.steps):
        first = step * config.run.batch_rows + parallel.rank() * share
        yield from ((start, micro) for start in range(first, first + share, micro))


def micro_step(run: Run, batch: MaskedBatch, u: float, progress: Progress) -> None:
    """Forward and backward of one micro-batch; the engine updates the weights when it has accumulated enough."""
    inputs = run.objective.inputs(batch.to(parallel.device()), u)
    loss, *outputs = run.engine(*inputs)
    run.engine.backward(broken_throughout(loss))
    run.engine.step()
    progress.add(run.objective.counts(outputs, inputs), loss)


@torch.no_grad()
def evaluate(run: Run) -> dict[str, float]:
    """The objective's metrics on the held-out rows and, if asked for, BLiMP's accuracy.

    They are the same whatever the number of processes; all take part.
    """
    micro, total = run.engine.train_micro_batch_size_per_gpu(), None
    run.engine.eval()
    for first in range(0, run.batches.num_held_out, micro * parallel.world_size()):
        start = first + parallel.rank() * micro
        rows = min(micro, run.batches.num_held_out - start)
        batch = run.batches.held_out(start if rows > 0 else 0, max(rows, 1)).to(parallel.device())
        with compiled(rows == micro):
            inputs = run.objective.evaluation_inputs(batch)
            _, *outputs = run.engine(*inputs)
        counts = run.objective.counts(outputs, inputs) * (rows > 0)
        total = counts if total is None else total + counts
    grammar = grammar_accuracy(run) if run.pairs else {}
    run.engine.train()
    assert total is not None
    return run.objective.report(parallel.sum_over_processes(total).cpu()) | grammar


def compiled(usual: bool) -> AbstractContextManager[Any]:
    """Inside, what is compiled runs as it is unless its sizes are the usual ones: a graph for others takes a minute to
    make, for the few rows or seldom lengths of an evaluation."""
    return torch.compiler.set_stance("default" if usual else "force_eager")


def grammar_accuracy(run: Run) -> dict[str, float]:
    """BLiMP's accuracy by the engine as it is: `blimp`, and `blimp_FIELD` for each field."""
    share = (parallel.rank(), parallel.world_size())
    ask = partial(run.objective.token_scores, run.engine)
    how = blimp.Score(ask, run.tokenizer.all_special_ids, parallel.device(), share)
    with compiled(False):
        scores = blimp.sentence_scores(blimp.encode(run.pairs, run.tokenizer), how).to(parallel.device())
    found = blimp.report(run.pairs, parallel.sum_over_processes(scores).cpu())
    return {"blimp": found["accuracy"]} | {f"blimp_{name}": value for name, value in found["fields"].items()}


def is_overdue(run: Run, saved: Position) -> bool:
    """Whether `run.save_minutes` of training have passed since `saved`, by the first process's clock on all of them."""
    minutes = run.config.run.save_minutes
    return minutes > 0 and bool(parallel.from_rank_zero(run.position.seconds - saved.seconds >= 60 * minutes))


def save(run: Run) -> None:
    """A checkpoint of where the run is."""
    folder = Path(run.config.output) / "checkpoints"
    keep = checkpoint.Keep(run.config.run.keep_checkpoints, run.config.run.keeps_every)
    try:
        checkpoint.save(run.engine, folder, run.position, keep, run.generator)
    except (OSError, RuntimeError) as error:  # torch tells of a disk that failed by a RuntimeError
        if failure.is_out_of_memory(error) or failure.is_lost_peer(error):
            raise
        free = f"{shutil.disk_usage(folder).free / 2**30:.2f} GiB are free there" if folder.exists() else "it is gone"
        raise OSError(
            f"the checkpoint of step {run.position.step:,} could not be written to {folder} ({error}; {free}). "
            f"Earlier ones are as they were: see to the disk, and {failure.GOES_ON}"
        ) from error


def finish(run: Run, progress: Progress) -> dict[str, Any]:
    """Last evaluation, export and summary.json."""
    config = run.config
    progress.watchdog.begin("evaluating and exporting", LONG)
    held_out = evaluate(run)
    progress.write({"step": run.position.step, "held_out": held_out})
    sample = run.batches.held_out(0, min(8, run.batches.num_held_out)).to(parallel.device())
    with compiled(False):
        inputs = run.objective.evaluation_inputs(sample)
        outputs = evaluated(run.engine, inputs)
        exported = run.objective.exports(run.engine.module, sample, inputs, outputs)
        folders = {name: Path(config.output) / name for name in exported}
        tokenizer = for_rows_of(run.tokenizer, config.data.sequence_length)
        own_types = bool(run.facts.get("initial_token_types"))
        differences = {
            name: export(run.engine, tokenizer, folders[name], each, own_types) for name, each in exported.items()
        }
    memory = peak_memory_gib()
    # Neighbours slow a product down as they do training: of the start's and this moment's the faster is a peak.
    peak_flops = max(run.peak_flops, setup_run.matrix_product_flops(config))
    tokens = run.position.rows_seen * config.data.sequence_length
    tokens_per_second = progress.tokens_per_second(run.position.step, run.position.seconds)
    first, last = run.objective.progress(0.0), run.objective.progress((config.run.steps - 1) / config.run.steps)
    summary = {
        "recipe": config.recipe,
        "objective": config.objective,
        **held_out,
        **{f"{name}_start": value for name, value in first.items()},
        **{f"{name}_end": value for name, value in last.items()},
        "steps": run.position.step,
        "tokens": tokens,
        "startup_seconds": progress.startup_seconds,
        "seconds": run.position.seconds,
        "tokens_per_second": tokens_per_second,
        "flops_per_token": run.flops_per_token,
        "mfu": flops.mfu(run.flops_per_token, tokens_per_second, peak_flops),
        "dtype": config.run.dtype,
        "compiled": config.run.compile,
        "measured_peak_tflops": peak_flops / 1e12,
        "peak_memory_gib": memory,
        "num_processes": parallel.world_size(),
        **run.facts,
        **{name: str(folder) for name, folder in folders.items()},
        "model_class": type(exported["export"].model).__name__,
        "export_logit_difference": max(differences.values()),
    }
    setup_run.on_rank_zero(lambda: run_folder.write_summary(config.output, summary))
    return summary
