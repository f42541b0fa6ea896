"""Numbers gone wrong in real engines: a broken update leaves no trace, and what stops a run says where it came from."""

import json
import math
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, clean_environment, launch
from torch.nn.utils import get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode

from fast_electra.engine import broken_updates, parallel, sharded_weights
from fast_electra.engine.broken_updates import Verdict
from fast_electra.methods.divergence import WARM_UP, DivergedError
from fast_electra.pretraining import pretrain, setup_run
from fast_electra.pretraining.progress import Progress
from fast_electra.runs import run_folder
from fast_electra.runs.watchdog import Watchdog
from fast_electra.settings import recipes

ROWS, MICRO = 8, 4
RHYTHM = {
    "steps": 100,
    "batch_rows": ROWS,
    "micro_batch_rows": MICRO,
    "log_every": 1,
    "dtype": "float32",
    "hang_minutes": 0,
}


def make_run(output, corpus, stage=3, objective="mlm", **of_run):
    """A run of a tiny model, with two micro-batches an update, ready to train in this process."""
    parallel.start()
    demo = recipes.get("demo")
    config = replace(
        demo,
        objective=objective,
        output=str(output),
        corpus=str(corpus),
        encoder=replace(demo.encoder, num_layers=1, hidden_size=32, num_heads=2, intermediate_size=48),
        data=replace(demo.data, sequence_length=32, held_out_rows=8),
        run=replace(demo.run, **{**RHYTHM, **of_run}),
    )
    setup_run.on_rank_zero(lambda: run_folder.claim(config))
    settings = {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
    with patch.object(setup_run, "matrix_product_flops", lambda _: 1e12):  # no speed is measured here
        return setup_run.build(config, settings, setup_run.open_batches(config))


def break_loss(run, at, factor=math.inf):
    """Multiply the loss of the micro-batches numbered `at`, counted from now, by `factor`."""
    seen = iter(range(10**9))

    def hook(_module, _inputs, outputs):
        return (outputs[0] * (factor if next(seen) in at else 1.0), *outputs[1:])

    return run.engine.module.register_forward_hook(hook)


def update(run, progress, step):
    """Update number `step`, counted from 1, as the loop makes it; returns whether it was made."""
    run.position = run.position._replace(step=step - 1)
    pretrain.set_learning_rates(run, 10)
    for first in range((step - 1) * ROWS, step * ROWS, MICRO):
        pretrain.micro_step(run, run.batches.training(first, MICRO), 0.5, progress)
    progress.end_update()
    return Verdict([run.engine.optimizer]).made()


def state(run):
    """Weights, moments and the count of updates that Adam goes by."""
    moments = {
        f"{number} {name}": value.clone()
        for number, each in enumerate(run.engine.optimizer.optimizer.state.values())
        for name, value in each.items()
    }
    assert len(moments) >= 3
    return dict(sharded_weights.full_weights(run.engine, run.engine.module)) | moments


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("stage", "dtype"), [(1, "float32"), (2, "float32"), (3, "float32"), (1, "bfloat16"), (3, "bfloat16")]
)
def test_a_broken_update_is_left_out_without_a_trace(stage, dtype, tiny_corpus, tmp_path):
    run = make_run(tmp_path / "run", tiny_corpus, stage, dtype=dtype, on_nan="skip")
    progress = Progress(run, Watchdog(0))
    assert update(run, progress, 1)
    before = state(run)
    hook = break_loss(run, at={0})
    assert not update(run, progress, 2), "its first micro-batch is broken, its second is not"
    hook.remove()
    assert equal(before, state(run))
    assert update(run, progress, 3)
    twin = make_run(tmp_path / "twin", tiny_corpus, stage, dtype=dtype)
    watching = Progress(twin, Watchdog(0))
    assert all(update(twin, watching, step) for step in (1, 3))
    assert equal(state(twin), state(run)), "nothing of the broken update is left in what comes after"
    assert progress.health.skipped == 1
    run.engine.destroy()
    twin.engine.destroy()


class Asked(TorchDispatchMode):
    """Counts how often the host asks a tensor for its value, for which a GPU would have to come to rest."""

    def __init__(self):
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, function, _types, arguments=(), more=None):
        self.times += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(more or {}))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_update_asks_the_device_for_nothing(stage, tiny_corpus, tmp_path):
    run = make_run(tmp_path / "run", tiny_corpus, stage, dtype="bfloat16")
    progress = Progress(run, Watchdog(0))
    update(run, progress, 1)
    assert not progress.health._in_flight, "the first of a start is waited for: the clock begins with its end"
    batches = [run.batches.training(first, MICRO) for first in (ROWS, ROWS + MICRO)]
    with Asked() as asked:
        for batch in batches:
            pretrain.micro_step(run, batch, 0.5, progress)
        progress.end_update()
        assert asked.times == 0, "its own verdict is on its way"
        progress.settle()
    assert asked.times == 1
    run.engine.destroy()


@pytest.mark.parametrize("stage", [1, 3])
def test_gradients_are_clipped_to_the_norm_that_is_reported(stage, tiny_corpus, tmp_path):
    """Adam's first moment after one update is (1 - beta1) times the gradient it was given."""
    norms = {}
    for clip in (0.0, 1e9, 0.01):
        run = make_run(tmp_path / f"run{clip}", tiny_corpus, stage)
        run.engine.optimizer.clip_grad = clip
        update(run, Progress(run, Watchdog(0)), 1)
        adam = run.engine.optimizer.optimizer
        moments = [each["exp_avg"] for each in adam.state.values()]
        beta1 = run.config.optimizer.beta1
        norms[clip] = (float(run.engine.get_global_grad_norm()), float(get_total_norm(moments)) / (1 - beta1))
        run.engine.destroy()
    free = norms[0.0][0]
    assert free > 0.1
    assert norms[0.0] == pytest.approx((free, free), rel=1e-5)
    assert norms[1e9] == pytest.approx((free, free), rel=1e-5), "nothing to clip"
    assert norms[0.01] == pytest.approx((free, 0.01), rel=1e-3), "the norm from before"


def test_the_norm_of_a_large_gradient_is_exact():
    """One sum of float32 squares loses .13 % of it."""
    parallel.start()
    adam = torch.optim.AdamW([torch.zeros(1)])
    optimizer = SimpleNamespace(optimizer=adam, clip_grad=1.0)
    gradients = [torch.randn(30_000, 768, generator=torch.Generator().manual_seed(0)), torch.ones(7)]
    true = float(torch.cat([each.flatten() for each in gradients]).double().norm())
    assert float(broken_updates._judge(optimizer, gradients)) == pytest.approx(true, rel=1e-5)
    assert float(adam.grad_scale) == pytest.approx(true, rel=1e-5)


def spikes(folder):
    return [json.loads(line) for line in (folder / "spikes.jsonl").read_text().splitlines()]


def row_numbers(run, first, count):
    return (run.batches.row_keys(np.arange(first, first + count)) % run.batches.num_rows).tolist()


def test_a_run_stops_with_step_rows_checkpoint_and_remedy(tiny_corpus, tmp_path):
    run = make_run(tmp_path / "run", tiny_corpus, save_every=2)
    break_loss(run, at={2 * 4 + 1})
    with pytest.raises(DivergedError) as raised:
        pretrain.train(run, Progress(run, Watchdog(0)))
    assert not [each.name for each in threading.enumerate() if each.name.startswith("batches")]
    message = str(raised.value)
    assert message.startswith("step 5: the loss of 1 of its 2 micro-batches is not finite; the update was not made.")
    assert "from before: " + str(tmp_path / "run" / "checkpoints" / "step-00000004") in message
    assert "--run.on_nan skip" in message
    (row,) = spikes(tmp_path / "run")
    rows = row_numbers(run, 4 * ROWS + MICRO, MICRO)
    assert (row["step"], row["kind"], row["rows"]) == (5, "broken", rows)
    assert ", ".join(map(str, rows)) in message
    run.engine.destroy()


def test_between_logged_steps_a_broken_update_is_noticed_after_the_next_and_never_saved_over(tiny_corpus, tmp_path):
    """Asked at once, the device would stand still after each update."""
    for name, of_run, last in (("seldom", {"save_every": 50}, 6), ("saved", {"save_every": 5}, 5)):
        run = make_run(tmp_path / name, tiny_corpus, log_every=50, **of_run)
        break_loss(run, at={2 * 4 + 1})
        progress = Progress(run, Watchdog(0))
        with pytest.raises(DivergedError, match=r"^step 5: the loss of 1 of its 2 micro-batches"):
            pretrain.train(run, progress)
        assert len(progress.health._steps) == 4
        assert run.position.step == last - (name == "seldom"), "raised while, or after, update `last` ended"
        assert not list((tmp_path / name / "checkpoints").glob("*"))
        run.engine.destroy()


def test_skipping_has_a_limit_over_all_starts_and_is_counted(tiny_corpus, tmp_path):
    run = make_run(tmp_path / "run", tiny_corpus, on_nan="skip", max_skipped=2, stop_at_step=6)
    break_loss(run, at={2, 9}, factor=math.nan)
    pretrain.train(run, Progress(run, Watchdog(0)))
    logged = run_folder.MetricsLog(str(tmp_path / "run"), 100).kept
    assert [row["skipped_updates"] for row in logged] == [0, 1, 1, 1, 2, 2]
    assert [row["loss"] is not None for row in logged if "loss" in row] == [True] * 4, "broken ones are not counted in"
    run.config = replace(run.config, run=replace(run.config.run, stop_at_step=0))
    break_loss(run, at={0})
    with pytest.raises(DivergedError, match=r"step 7: .* 3 updates were left out, run.max_skipped is 2"):
        pretrain.train(run, Progress(run, Watchdog(0)))
    run.engine.destroy()


def test_a_spike_is_written_down_with_the_rows_of_its_micro_batch(tiny_corpus, tmp_path):
    run = make_run(tmp_path / "run", tiny_corpus, stop_at_step=WARM_UP + 10)
    break_loss(run, at={2 * (WARM_UP + 4)}, factor=9.0)
    pretrain.train(run, Progress(run, Watchdog(0)))
    (row,) = spikes(tmp_path / "run")
    assert (row["step"], row["kind"]) == (WARM_UP + 5, "spike")
    assert row["rows"] == row_numbers(run, (WARM_UP + 4) * ROWS, MICRO)
    assert row["loss"] > row["mean"] + 6 * row["standard_deviation"]
    run.engine.destroy()


def test_a_loss_at_the_majority_class_floor_stops_the_run(tiny_corpus, tmp_path):
    run = make_run(tmp_path / "run", tiny_corpus, objective="random", floor_patience=5)
    run.config = replace(run.config, optimizer=replace(run.config.optimizer, peak_learning_rate=1e-12))
    with pytest.raises(
        DivergedError, match=r"step 5: the loss, .* has been at the majority-class floor, .* since step 0 "
    ):
        pretrain.train(run, Progress(run, Watchdog(0)))
    run.engine.destroy()


def test_weights_that_are_not_finite_are_never_saved(tiny_corpus, tmp_path):
    run = make_run(tmp_path / "run", tiny_corpus, stage=2, save_every=1)
    progress = Progress(run, Watchdog(0))
    progress.health.require_sound_weights()
    next(run.engine.module.parameters()).data.view(-1)[3] = math.nan
    with pytest.raises(DivergedError, match="weights are no longer finite, and no checkpoint was made of them"):
        progress.health.require_sound_weights()
    run.engine.destroy()


ON_ONE_RANK = """
import sys
sys.path.insert(0, sys.argv[-1])
from pathlib import Path
from test_health import MICRO, ROWS, break_loss, make_run, row_numbers
from fast_electra.engine import parallel
from fast_electra.pretraining import pretrain
from fast_electra.methods.divergence import DivergedError
from fast_electra.pretraining.progress import Progress
from fast_electra.runs.watchdog import Watchdog

run = make_run(Path("run"), sys.argv[-2])
if parallel.rank() == 1:
    break_loss(run, at={2})
try:
    pretrain.train(run, Progress(run, Watchdog(0)))
except DivergedError as error:
    text = str(error)
rows = row_numbers(run, 2 * ROWS + MICRO, MICRO)
print(f"rank {parallel.rank()}: {text[:7]} {rows} {text.count('not made')}\\n", end="", flush=True)
parallel.stop(0)
"""


@pytest.mark.slow
def test_what_breaks_on_one_process_stops_all_at_the_same_step(tiny_corpus, tmp_path):
    (tmp_path / "one.py").write_text(ON_ONE_RANK)
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus=2", "--master_port=29873", "one.py"]
    environment = clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [*command, str(tiny_corpus), str(ROOT / "tests")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = spikes(tmp_path / "run")
    assert row["step"] == 3
    for rank in (0, 1):
        assert f"rank {rank}: step 3: {row['rows']} 1" in done.stdout


def test_an_absurd_learning_rate_ends_with_one_message_and_a_status_of_its_own(tiny_corpus, tmp_path):
    arguments = [*TINY, "--objective=mlm", f"--corpus={tiny_corpus}", f"--output={tmp_path / 'run'}"]
    done = launch(*arguments, "--optimizer.peak_learning_rate=1e18", check=False)
    assert done.returncode == 3, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "optimizer.peak_learning_rate" in done.stderr
