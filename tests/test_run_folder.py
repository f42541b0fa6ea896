import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fast_electra.runs import run_folder
from fast_electra.settings import recipes


@pytest.fixture
def config(tmp_path):
    return replace(recipes.get("demo"), output=str(tmp_path / "run"))


def test_a_folder_is_claimed_and_claimed_again_by_the_same_run(config, tmp_path):
    run_folder.claim(config)
    run_folder.claim(config)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["libraries"]["torch"]


def test_settings_that_change_no_result_may_change(config):
    run_folder.claim(config)
    run_folder.claim(replace(config, run=replace(config.run, log_every=1, micro_batch_rows=4, stop_at_step=3)))


def test_a_claim_under_which_nothing_was_made_may_be_taken_over_or_leaves_nothing(config, tmp_path):
    run_folder.claim(config)
    run_folder.claim(replace(config, seed=4))
    run_folder.release(config)
    assert not (tmp_path / "run").exists()


def test_a_run_that_made_something_is_never_released(config, tmp_path):
    run_folder.claim(config)
    (tmp_path / "run" / "checkpoints").mkdir()
    run_folder.release(config)
    assert (tmp_path / "run" / "config.json").exists()


def test_other_inputs_under_the_same_names_are_refused(config):
    run_folder.claim(config)
    run_folder.bind(config.output, {"corpus data/wiki": "abc"})
    run_folder.bind(config.output, {"corpus data/wiki": "abc"})
    with pytest.raises(ValueError, match=r"(?s)other inputs.*corpus data/wiki: 'abc' there, 'xyz' now"):
        run_folder.bind(config.output, {"corpus data/wiki": "xyz"})


def test_what_an_older_version_did_not_write_down_is_taken_as_it_is(config):
    run_folder.claim(config)
    run_folder.bind(config.output, {"corpus data/wiki": "abc", "auxiliary_weights": "w"})
    run_folder.bind(config.output, {"corpus 1": "abc", "auxiliary_weights": "w"})
    with pytest.raises(ValueError, match="auxiliary_weights: 'w' there, 'v' now"):
        run_folder.bind(config.output, {"corpus 1": "abc", "auxiliary_weights": "v"})


def test_inputs_of_a_start_that_made_nothing_bind_no_other(config):
    run_folder.claim(config)
    run_folder.bind(config.output, {"corpus 1": "abc"})
    run_folder.claim(config)
    run_folder.bind(config.output, {"corpus 1": "xyz"})
    (Path(config.output) / "metrics.jsonl").touch()
    run_folder.claim(config)
    with pytest.raises(ValueError, match="other inputs"):
        run_folder.bind(config.output, {"corpus 1": "abc"})


def test_a_start_beside_one_that_builds_leaves_its_inputs(config, monkeypatch):
    run_folder.claim(config)
    run_folder.bind(config.output, {"corpus 1": "abc"})

    def held(_folder):
        raise ValueError("process 1 works here")

    monkeypatch.setattr(run_folder.run_state, "take", held)
    with pytest.raises(ValueError, match="works here"):
        run_folder.claim(config)
    assert run_folder.bound(config.output) == {"corpus 1": "abc"}


def test_a_corpus_may_lie_elsewhere_and_nothing_else_may_change(config):
    run_folder.claim(config)
    (Path(config.output) / "metrics.jsonl").touch()
    run_folder.claim(replace(config, corpus="moved/corpus"))
    with pytest.raises(ValueError, match="tokenizer: '' there, 'bert' now"):
        run_folder.claim(replace(config, tokenizer="bert"))


def test_a_disk_that_is_full_at_the_start_is_named_and_the_same_command_goes_on(config, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(run_folder.config_file, "save", refuse)
        with pytest.raises(ValueError, match=r"the disk is full .* make room, and start with the same command again"):
            run_folder.claim(config)
    assert (Path(config.output) / "state.json").exists()
    run_folder.claim(config)


def test_numbers_that_json_cannot_hold_become_null(tmp_path):
    run_folder.MetricsLog(str(tmp_path), 0).write({"step": 1, "held_out": {"roc_auc": float("nan")}})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["held_out"]["roc_auc"] is None


def test_another_run_is_refused_with_every_difference(config, tmp_path):
    run_folder.claim(config)
    (tmp_path / "run" / "checkpoints").mkdir()
    other = replace(config, seed=4, run=replace(config.run, steps=7))
    with pytest.raises(ValueError, match=r"(?s)holds another run.*seed: 0 there, 4 now.*run.steps: 400 there, 7 now"):
        run_folder.claim(other)


def test_a_finished_run_that_shall_go_on_longer_is_told_how(config, tmp_path):
    run_folder.claim(config)
    (tmp_path / "run" / "checkpoints").mkdir()
    run = tmp_path / "run"  # whose auxiliary model it has trained itself
    how = f"--output with --initial_weights {run / 'export'} --auxiliary {run / 'auxiliary' / 'export'}"
    longer, shorter = (replace(config, run=replace(config.run, steps=steps)) for steps in (900, 300))

    def told(other):
        with pytest.raises(ValueError, match=r"holds another run(?s:.*)run.steps: 400 there, \d+ now") as refused:
            run_folder.claim(other)
        return how in str(refused.value)

    assert not told(longer), "it is not finished"
    run_folder.write_summary(config.output, {"steps": 400})
    assert told(longer)
    assert not told(shorter)
    assert not told(replace(longer, seed=4)), "it is another run"


@pytest.mark.parametrize(("objective", "differs"), [("mlm", False), ("joint_shallow", False), ("frozen", True)])
def test_a_run_of_before_epsilon_was_left_open_is_held_against_the_number(objective, differs, config):
    joint = {"objective": objective, "initial_weights": ""}
    before = replace(config, optimizer=replace(config.optimizer, epsilon=1e-6), **joint)
    run_folder.claim(before)
    Path(config.output, "checkpoints").mkdir()
    if differs:
        with pytest.raises(ValueError, match=r"optimizer.epsilon: 1e-06 there, 2e-08 now"):
            run_folder.claim(replace(config, **joint))
    else:
        run_folder.claim(replace(config, **joint))
    if objective == "joint_shallow":
        run_folder.write_summary(config.output, {"steps": 400})
        with pytest.raises(ValueError, match="holds another run") as refused:
            run_folder.claim(replace(before, run=replace(config.run, steps=900)))
        assert "--initial_weights" not in str(refused.value), "which a joint run's export cannot be"


def test_a_folder_of_something_else_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="no run of this project made it"):
        run_folder.claim(config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_refused(config, tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(ValueError, match="no run of this project made it"):
        run_folder.claim(config)


def test_a_folder_that_cannot_be_made_is_refused(config):
    with pytest.raises(ValueError, match="cannot be written"):
        run_folder.claim(replace(config, output="/proc/nowhere/run"))


def test_too_little_disk_space_is_refused_before_anything_is_trained(tmp_path):
    run_folder.require_space(str(tmp_path), 1)
    with pytest.raises(ValueError, match=r"will write about 1048576.00 GiB .* lower run.keep_checkpoints, raise"):
        run_folder.require_space(str(tmp_path), 2**50)


def test_a_resumed_log_drops_rows_past_the_checkpoint_and_a_line_cut_short(tmp_path):
    log = run_folder.MetricsLog(str(tmp_path), 0)
    for step in (1, 2, 3):
        log.write({"step": step})
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    run_folder.MetricsLog(str(tmp_path), 2).write({"step": 3, "again": True})
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert rows == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_damaged_rows_of_a_log_are_left_out_and_kept_beside(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    damaged = b'{"step": 1}\n{"st\x00p": 2}\n\xff\n{"step": "3"}\n[4]\n\n{"step": 5}\n'
    path.write_bytes(damaged)
    run_folder.MetricsLog(str(tmp_path), 9)
    assert path.read_text() == '{"step": 1}\n{"step": 5}\n'
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == damaged
    assert "5 unreadable rows of " in capsys.readouterr().out


def test_a_changed_summary_is_refused(tmp_path):
    run_folder.write_summary(str(tmp_path), {"loss": 0.125})
    assert run_folder.read_summary(str(tmp_path)) == {"loss": 0.125}
    path = tmp_path / "summary.json"
    path.write_text(path.read_text().replace("0.125", "0.025"))
    with pytest.raises(ValueError, match=r"summary\.json' is broken: .*Remove it, and the same command writes it"):
        run_folder.read_summary(str(tmp_path))
