"""The clock: what counts in tokens/s and what does not."""

from types import SimpleNamespace

import pytest
import torch
from test_health import make_run

from fast_electra.checkpoints.checkpoint import Position
from fast_electra.pretraining import progress as clocks
from fast_electra.pretraining.progress import Progress
from fast_electra.runs.watchdog import Watchdog


@pytest.fixture
def ticking(tiny_corpus, tmp_path, monkeypatch):
    """A run and its Progress, on a clock that the test sets."""
    run, now = make_run(tmp_path / "run", tiny_corpus), SimpleNamespace(seconds=100.0)
    clock = SimpleNamespace(perf_counter=lambda: now.seconds, time=lambda: 1_000.0 + now.seconds)
    monkeypatch.setattr(clocks, "time", clock)
    run.began, run.position = 1_090.0, Position(3, 0, 50.0)
    progress = Progress(run, Watchdog(0))
    monkeypatch.setattr(progress.health, "end_update", lambda _counts: [])
    yield run, progress, now
    progress.close()
    run.engine.destroy()


def update(run, progress, now, seconds):
    now.seconds += seconds
    progress.add(torch.ones(1), torch.ones(()))
    progress.end_update()
    run.position = Position(run.position.step + 1, 0, progress.elapsed())


def test_the_first_update_of_a_start_warms_up_and_counts_in_no_speed(ticking):
    run, progress, now = ticking
    tokens = run.config.run.batch_rows * run.config.data.sequence_length
    update(run, progress, now, 40.0)
    assert progress.startup_seconds == 50.0
    assert progress.tokens_per_second(4, 90.0, (3, 50.0)) == tokens / 40, "there is no other to go by"
    update(run, progress, now, 2.0)
    with progress.paused():
        now.seconds += 1_000.0
    update(run, progress, now, 2.0)
    assert run.position == Position(6, 0, 94.0)
    assert progress.tokens_per_second(6, 94.0) == tokens / 2, "of the whole run"
    assert progress.tokens_per_second(6, 94.0, (3, 50.0)) == tokens / 2, "of the row that the first is in"
    assert progress.tokens_per_second(6, 94.0, (5, 92.0)) == tokens / 2, "of a later row"
    assert progress.startup_seconds == 50.0
