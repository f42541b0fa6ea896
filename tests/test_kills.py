"""Killed at any instant: the same command goes on from the last whole checkpoint and ends with the same bits."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY, launch
from kill_harness import differing, kill_again_and_again

from fast_electra.batching.batches import Batches
from fast_electra.checkpoints.checkpoint import Position
from fast_electra.corpora.corpus import Corpus
from fast_electra.settings.config import DataConfig

OFTEN = [*TINY, "--objective=mlm", "--run.save_every=2", "--run.evaluate_every=5"]


def proof(corpus, folder, steps, kills, num_processes=2):
    """The kills of a run that ended with the same bits as one never stopped."""
    arguments = [*OFTEN, f"--run.steps={steps}", f"--corpus={corpus}"]
    launch(*arguments, f"--output={folder / 'whole'}", num_processes=num_processes)
    output = folder / "killed"
    done = kill_again_and_again([*arguments, f"--output={output}"], output, kills, steps // (kills + 1), num_processes)
    assert differing(folder / "killed", folder / "whole") == []
    assert not list(folder.rglob("*.partial"))
    return done


def test_a_run_killed_in_saving_ends_with_the_same_bits(tiny_corpus, tmp_path):
    done = proof(tiny_corpus, tmp_path, steps=80, kills=1, num_processes=1)
    assert done[0].half_written


@pytest.mark.survive
def test_killed_25_times_a_run_ends_with_the_same_bits(tiny_corpus, tmp_path, record_property):
    done = proof(tiny_corpus, tmp_path, steps=400, kills=25)
    aims, half = Counter(kill.aim for kill in done), sum(kill.half_written for kill in done)
    where = ", ".join(f"{count} {aim}" for aim, count in aims.items())
    tried = f"2 processes, ZeRO-3, {len(done)} SIGKILLs of the whole group ({where}); {half} left half a checkpoint"
    record_property("tried", tried)
    assert half >= 5, "of the kills aimed into saving, some must have hit it"


@pytest.mark.parametrize("step", [10, 1_000_000, 10**9])
def test_a_position_is_found_and_not_replayed(step, tiny_corpus, monkeypatch):
    from fast_electra.engine import parallel
    from fast_electra.pretraining import pretrain

    opened = Batches([(Corpus.open(tiny_corpus), 1.0)], DataConfig(sequence_length=32, held_out_rows=32), seed=0)
    read = []
    masked = Batches.masked
    monkeypatch.setattr(Batches, "masked", lambda self, keys: read.extend(keys) or masked(self, keys))
    monkeypatch.setattr(parallel, "rank", lambda: 0)
    monkeypatch.setattr(parallel, "world_size", lambda: 1)
    run = SimpleNamespace(
        config=SimpleNamespace(run=SimpleNamespace(batch_rows=16, steps=10**12)),
        engine=SimpleNamespace(train_micro_batch_size_per_gpu=lambda: 8),
        position=Position(step, step * 16, 0.0),
    )
    first, count = next(pretrain.spans(run))
    batch = opened.training(first, count)
    assert (first, count, len(read)) == (step * 16, 8, 8)
    assert np.array_equal(batch.rows, opened.row_keys(np.arange(step * 16, step * 16 + 8)))
