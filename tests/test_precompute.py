"""The launcher as users start it: the same bytes after a kill and on two processes, refusals, and runs that replay."""

import dataclasses
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import TINY, clean_environment, launch, metrics, wait_for
from conftest import start as start_command
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig

from fast_electra.methods import replay
from fast_electra.methods.objectives import Frozen
from fast_electra.models.auxiliary import weights_fingerprint
from fast_electra.pretraining import precompute, setup_run
from fast_electra.replacements.replacement_paths import TemperatureGrid
from fast_electra.replacements.replacement_store import Provenance, ReplacementStore
from fast_electra.runs import failure, preemption, run_state
from fast_electra.settings import config as configs
from fast_electra.settings import config_file
from fast_electra.settings.config import Config

ROOT = Path(__file__).parent.parent
SCRIPT = "launchers/precompute_replacements.py"
DATA = ["--data.sequence_length=32", "--data.held_out_rows=32", "--auxiliary_gate=false"]
DRAWS = 2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, documents):
    """A corpus of some hundred rows of 32 tokens and a masked LM for it, with new weights."""
    from fast_electra.corpora import corpus

    folder = tmp_path_factory.mktemp("inputs")
    (folder / "text.txt").write_text("\n\n".join(documents)[:35_000])
    corpus.build([str(folder / "text.txt")], folder / "corpus", vocab_size=400, workers=1, progress=False)
    tokenizer = AutoTokenizer.from_pretrained(folder / "corpus" / "tokenizer")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    model = AutoModelForMaskedLM.from_config(BertConfig(**sizes, vocab_size=len(tokenizer)))
    model.get_input_embeddings().weight.data *= 5
    # Words as frequent as in the corpus, so that some samples are the original and the shares replaced tell runs apart.
    counts = np.bincount(corpus.Corpus.open(folder / "corpus").tokens, minlength=len(tokenizer)) + 1.0
    model.get_output_embeddings().bias.data += torch.from_numpy(counts).float().log()
    model.save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    return [f"--corpus={folder / 'corpus'}", f"--auxiliary={folder / 'lm'}"]


def command(*arguments, num_processes=1):
    python = [sys.executable]
    if num_processes > 1:
        port = 40_000 + os.getpid() % 20_000
        python = [
            str(Path(sys.executable).parent / "deepspeed"),
            f"--num_gpus={num_processes}",
            f"--master_port={port}",
        ]
    return [*python, SCRIPT, *arguments]


def start(*arguments, num_processes=1):
    environment = clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    return subprocess.run(
        command(*arguments, num_processes=num_processes),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != run_state.NAME}


@pytest.fixture(scope="module")
def built(inputs, tmp_path_factory):
    """(folder of paths, what the launcher printed): one process, never stopped."""
    output = tmp_path_factory.mktemp("paths") / "paths"
    done = start(*DATA, *inputs, f"--draws={DRAWS}", f"--output={output}")
    assert done.returncode == 0, done.stderr[-3000:]
    return output, done


def test_the_folder_and_what_is_said_of_it(built):
    output, done = built
    store = ReplacementStore(output)
    store.verify()
    assert store.provenance.num_draws == DRAWS
    assert store.provenance.num_shards >= 4
    assert "temperatures 1 to 4 in 49,153 levels" in done.stdout
    assert "bytes a token of corpus and draw" in done.stdout
    assert "replacement paths: 100%" in done.stderr


def test_killed_and_started_again_on_two_processes_it_ends_at_the_same_bytes(inputs, built, tmp_path):
    arguments = [*DATA, *inputs, f"--draws={DRAWS}", f"--output={tmp_path / 'paths'}"]
    environment = clean_environment(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    with subprocess.Popen(command(*arguments), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as running:
        while not list((tmp_path / "paths").glob("shard-*")):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert not (tmp_path / "paths" / "manifest.json").exists()
    # At least two shards are left to do, so that both processes have one.
    for shard in sorted((tmp_path / "paths").glob("shard-*"))[1:]:
        shard.unlink()
    kept = next((tmp_path / "paths").glob("shard-*"))
    before = kept.stat().st_mtime_ns
    again = start(*arguments, num_processes=2)
    assert again.returncode == 0, again.stderr[-3000:]
    assert kept.stat().st_mtime_ns == before
    assert contents(tmp_path / "paths") == contents(built[0])


def test_a_signal_finishes_the_shards_at_hand_and_the_same_command_goes_on(inputs, built, tmp_path):
    output = tmp_path / "paths"
    arguments = [*DATA, *inputs, f"--draws={DRAWS}", f"--output={output}"]
    with start_command(command(*arguments, num_processes=2), stdout=subprocess.PIPE) as running:
        wait_for(lambda: list(output.glob("shard-*")), running)
        children = psutil.Process(running.pid).children(recursive=True)
        (second,) = [each for each in children if not each.children() and each.environ().get("RANK") == "1"]
        second.terminate()
        said, _ = running.communicate(timeout=120)
    assert running.returncode == preemption.EXIT_STATUS == 75, said
    assert "stopped; the same command goes on with the shards that are not done" in said
    assert run_state.read(str(output))["state"] == run_state.PREEMPTED
    assert not list(output.glob(".partial-*")) + list(output.glob("manifest.json"))
    again = start(*arguments)
    assert again.returncode == 0, again.stderr[-3000:]
    assert run_state.read(str(output))["state"] == run_state.FINISHED
    assert contents(output) == contents(built[0])


def test_a_second_start_in_the_same_folder_is_refused_and_disturbs_nothing(inputs, tmp_path):
    run_state.take(str(tmp_path))
    refused = start(*DATA, *inputs, f"--output={tmp_path}")
    assert refused.returncode == 2
    assert f"error: output = '{tmp_path}': process {os.getpid()} on " in refused.stderr
    assert run_state.read(str(tmp_path))["state"] == run_state.RUNNING
    assert [path.name for path in tmp_path.iterdir()] == [run_state.NAME]
    run_state.end(str(tmp_path), run_state.STOPPED)


def test_draws_are_the_launchers_the_data_settings_or_one():
    plain = configs.Config()
    three = dataclasses.replace(plain, data=dataclasses.replace(plain.data, num_draws=3))
    given = ((plain, None, 1), (plain, 2, 2), (three, None, 3), (three, 3, 3), (plain, 0, 0))
    assert all(precompute.with_draws(config, draws).data.num_draws == expected for config, draws, expected in given)
    with pytest.raises(ValueError, match=r"data.num_draws = 3: --draws is 2; leave one of them out"):
        precompute.with_draws(three, 2)


def test_help_lists_what_the_training_shares(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--help"])
    monkeypatch.setattr(preemption, "install", lambda: None)
    launcher = runpy.run_path(str(ROOT / SCRIPT))
    with pytest.raises(SystemExit, match="0"):
        launcher["main"]()
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")}
    assert listed == {
        "--output",
        "--draws",
        "--t_min",
        "--t_max",
        "--max_levels",
        *map("--{}".format, launcher["SHARED"]),
    }
    assert {"corpus", "auxiliary", "recipe", "auxiliary_gate"} <= set(launcher["SHARED"]) <= set(vars(Config()))


def test_what_the_training_shares_may_be_given_apart_or_joined(capsys, monkeypatch, tmp_path):
    given = ["--corpus", "a b", "--auxiliary=lm", "--recipe", "small", "--seed=3", "--auxiliary_gate", "false"]
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--output", str(tmp_path / "paths"), *given, "--data.mask_rate=0.2"])
    monkeypatch.setattr(preemption, "install", lambda: None)
    monkeypatch.setattr(failure, "leave", lambda error, _doing: sys.exit(str(error)))
    seen = []
    monkeypatch.setattr(precompute, "precompute", lambda config, *_: seen.append(config) or sys.exit("seen"))
    with pytest.raises(SystemExit, match="seen"):
        runpy.run_path(str(ROOT / SCRIPT))["main"]()
    (config,) = seen
    assert (config.corpus, config.auxiliary, config.recipe, config.seed) == ("a b", "lm", "small", 3)
    assert (config.auxiliary_gate, config.data.mask_rate, config.data.sequence_length) == (False, 0.2, 128)


@pytest.mark.parametrize(("wrong", "right"), [("--draw", "--draws"), ("--run.step", "--run.steps")])
def test_an_unknown_option_may_be_one_of_the_launchers_own(wrong, right, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [SCRIPT, f"--output={tmp_path / 'paths'}", wrong, "2"])
    monkeypatch.setattr(preemption, "install", lambda: None)
    monkeypatch.setattr(failure, "leave", lambda error, _doing: sys.exit(str(error)))
    with pytest.raises(SystemExit, match=f"^{wrong} is no setting; did you mean {right}\\?"):
        runpy.run_path(str(ROOT / SCRIPT))["main"]()


def test_a_refused_start_leaves_no_folder(inputs, tmp_path):
    refused = start(*DATA, inputs[0], "--auxiliary=/no/such/model", f"--output={tmp_path / 'paths'}")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "paths").exists()


def test_paths_of_other_settings_are_refused_in_one_message(inputs, built):
    refused = start(*DATA, *inputs, f"--draws={DRAWS}", "--seed=5", f"--output={built[0]}")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "seed is 0, not 5: choose another folder or delete this one" in refused.stderr


def test_a_folder_of_other_things_is_refused_and_left_alone(inputs):
    corpus = Path(inputs[0].partition("=")[2])
    before = contents(corpus / "tokenizer"), sorted(corpus.iterdir())
    refused = start(*DATA, *inputs, f"--output={corpus}")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "it holds other things (" in refused.stderr
    assert (contents(corpus / "tokenizer"), sorted(corpus.iterdir())) == before


@pytest.mark.parametrize(
    ("changes", "temperatures", "message"),
    [
        ({"draws": 0}, (1.0, 4.0), "data.num_draws = 0: give --draws of at least 1"),
        ({"auxiliary": ""}, (1.0, 4.0), "auxiliary = '': name the masked LM"),
        ({"corpus": ""}, (1.0, 4.0), "corpus = '': name a folder that prepare_corpus.py made"),
        ({}, (1.5, 4.0), r"temperatures = \(1.5, 4.0\): held-out rows are sampled at T = 1"),
        ({}, (4.0, 1.0), "give 0 < T_min <= T_max"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_loaded(changes, temperatures, message):
    given = {"auxiliary": "lm", "corpus": "corpus", "draws": 1} | changes
    data = configs.DataConfig(num_draws=given.pop("draws"))
    with pytest.raises(ValueError, match=message):
        precompute.precompute(Config(**given, data=data), *temperatures)


def test_a_disk_without_room_is_refused(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10 * 2**20))
    provenance = Provenance(
        "c", "t", "a", "m", 0.15, 128, 19, 16_000, 0, TemperatureGrid.covering(1, 4), 10**6, 2, 4096
    )
    with pytest.raises(ValueError, match=r"the paths may take 0.35 GiB, the disk has 0.01 GiB free; make room"):
        precompute._begin(tmp_path, provenance)
    precompute._begin(tmp_path / "small", dataclasses.replace(provenance, num_rows=10**4))


def test_weights_that_differ_in_one_number_have_another_fingerprint():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 4, dtype=torch.bfloat16)
    before = weights_fingerprint(model)
    assert weights_fingerprint(model) == before
    model.weight.data[2, 1] += 1
    assert weights_fingerprint(model) != before


def expected_replaced_shares(output, folder):
    """What a run's rows must say, from the paths alone."""
    config = config_file.load(output / "config.json")
    batches = setup_run.open_batches(config)
    store = replay.open_store(config, batches)
    objective: Frozen = replay.Replay(store, 0, config.temperature, config.data.mask_rate)
    for step in range(config.run.steps):
        batch = batches.training(step * config.run.batch_rows, config.run.batch_rows)
        yield float(objective.inputs(batch, step / config.run.steps).labels.float().mean())


def test_a_run_replays_without_an_auxiliary_model_also_when_stopped_and_resumed(inputs, built, tmp_path, monkeypatch):
    output = tmp_path / "run"
    replaying = [*TINY, inputs[0], "--objective=replay", f"--replacements={built[0]}", f"--output={output}"]
    launch(*replaying, "--run.stop_at_step=3", num_processes=2)
    done = launch(*replaying, num_processes=2)
    assert "2 draws a row, T from 1 to 4; no auxiliary model was loaded" in done.stdout
    summary = json.loads((output / "summary.json").read_text())
    assert summary["replacement_draws"] == DRAWS
    assert 0.5 < summary["auxiliary_accuracy"] + summary["replaced_share"] / 0.15625 < 1.5
    rows = [row for row in metrics(output) if "loss" in row]
    assert all(round(row["temperature"] * 2**14) == row["temperature"] * 2**14 for row in rows)
    # In this process, on one: the same tokens as on two, before and after the resume.
    monkeypatch.setattr(setup_run, "on_rank_zero", lambda action: action())
    shares = list(expected_replaced_shares(output, built[0]))
    assert [row["replaced_share"] for row in rows] == pytest.approx(shares, rel=1e-6)
    assert len(set(shares)) > 1


def test_a_flipped_byte_is_found_before_training(inputs, built, tmp_path):
    shutil.copytree(built[0], tmp_path / "paths")
    shard = tmp_path / "paths" / "shard-00003.bin"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    replaying = ["--objective=replay", f"--replacements={tmp_path / 'paths'}", f"--output={tmp_path / 'run'}"]
    refused = launch(*TINY, inputs[0], *replaying, check=False)
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
    assert "shard-00003.bin" in refused.stderr
    assert "is damaged" in refused.stderr
