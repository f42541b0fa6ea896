"""Checkpoint folders without an engine; with one they are tested end to end."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from fast_electra.checkpoints import checkpoint, universal
from fast_electra.files import json_file
from fast_electra.runs import failure


def make(folder, step, text="weights"):
    path = folder / f"step-{step:08d}"
    (path / "zero").mkdir(parents=True)
    (path / "zero" / "rank0.pt").write_text(text)
    files = {"zero/rank0.pt": {"bytes": len(text), "xxh3_128": checkpoint._hash(path / "zero" / "rank0.pt")}}
    manifest = {
        "step": step,
        "rows_seen": step * 8,
        "seconds": 1.5,
        "num_processes": 1,
        "zero_stage": 3,
        "files": files,
    }
    (path / "manifest.json").write_text(json.dumps(json_file.sealed(manifest)))
    return path


def change(path, before, after):
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    make(tmp_path, 9)
    newest = make(tmp_path, 100)
    (tmp_path / "step-00000200.partial").mkdir()
    path, manifest = checkpoint.newest_sound(tmp_path)
    assert path == newest
    assert manifest["rows_seen"] == 800


def test_an_empty_folder_has_none(tmp_path):
    assert checkpoint.newest_sound(tmp_path) is None
    assert checkpoint.newest_sound(tmp_path / "absent") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "zero" / "rank0.pt").write_text("wEights"),
        lambda path: (path / "zero" / "rank0.pt").write_text("weigh"),
        lambda path: (path / "zero" / "rank0.pt").unlink(),
        lambda path: (path / "manifest.json").write_text("{"),
        lambda path: (path / "manifest.json").write_text("[]"),
        lambda path: (path / "manifest.json").write_text('{"step": 2}'),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "zero" / "rank1.pt").write_text("not of this project"),
        lambda path: change(path / "manifest.json", '"rows_seen": 16', '"rows_seen": 96'),
        lambda path: shutil.copy(path.parent / "step-00000001" / "manifest.json", path),
    ],
    ids=[
        *("a changed byte", "cut short", "a file gone", "no JSON", "a list", "keys missing", "no manifest"),
        *("a foreign file", "a changed position", "another one's manifest"),
    ],
)
def test_a_damaged_newest_one_is_named_set_aside_and_passed_over(tmp_path, damage, capsys):
    sound, broken = make(tmp_path, 1), make(tmp_path, 2)
    damage(broken)
    path, _ = checkpoint.newest_sound(tmp_path)
    assert path == sound
    assert not broken.exists()
    assert broken.with_name(broken.name + ".damaged").exists()
    assert str(broken) in capsys.readouterr().out
    damage(make(tmp_path, 2))
    assert checkpoint.newest_sound(tmp_path)[0] == sound
    assert broken.with_name(broken.name + ".damaged-2").exists()


def test_each_process_hashes_what_it_wrote_and_no_file_is_left_out():
    shards = [Path(f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt") for rank in (0, 1, 10, 11, 2, 3)]
    others = [Path("generator/mp_rank_00_model_states.pt"), Path("mp_rank_00_model_states.pt")]
    assert checkpoint.share(shards + others, 10, 12) == [shards[2]]
    for num_processes in (1, 2, 5):  # also of fewer processes than wrote it
        shares = [checkpoint.share(shards + others, rank, num_processes) for rank in range(num_processes)]
        assert sorted(path for mine in shares for path in mine) == sorted(shards + others)


def test_a_hash_that_is_known_is_not_asked_of_the_disk_and_a_file_that_cannot_be_read_is_damage(tmp_path, monkeypatch):
    path = make(tmp_path, 1)
    shard = path / "zero" / "rank0.pt"
    known = {shard: checkpoint._hash(shard)}

    def refuse(_path):
        raise OSError("input/output error")

    monkeypatch.setattr(checkpoint, "_hash", refuse)
    assert checkpoint.verified(path, known)["step"] == 1
    with pytest.raises(ValueError, match=r"rank0\.pt is not what its manifest says"):
        checkpoint.verified(path)
    with pytest.raises(ValueError, match=r"rank0\.pt is not what its manifest says"):
        checkpoint.verified(path, {shard: "unreadable"})


def test_the_last_few_stay_and_those_at_multiples_for_good(tmp_path):
    for step in (2, 4, 6, 8, 10):
        make(tmp_path, step)
    checkpoint.clear(tmp_path, checkpoint.Keep(last=2, every=4))
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step-00000004", "step-00000008", "step-00000010"]
    checkpoint.clear(tmp_path, checkpoint.Keep(last=1))
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step-00000010"]
    assert not list(tmp_path.glob("*.partial"))


def test_a_generators_state_is_converted_beside_its_checkpoint_too(tmp_path, monkeypatch):
    """What a kill leaves of it is then removed, and the checkpoint holds nothing that its manifest does not list."""
    step, seen = make(tmp_path, 4), []

    def cut_short(path, converted, num_groups):
        seen.append(converted)
        raise OSError("the disk is full")

    monkeypatch.setattr(universal, "convert", cut_short)
    monkeypatch.setattr(checkpoint.parallel, "on_rank_zero", lambda work: work())
    engine = SimpleNamespace(optimizer=SimpleNamespace(param_groups=[{}]))
    for path in (step, step / "generator"):
        with pytest.raises(OSError, match="full"):
            checkpoint._load_universal(engine, path)
    assert seen == [tmp_path / "step-00000004.universal.partial"] * 2


def test_while_a_checkpoint_is_converted_its_process_can_be_heard(tmp_path, monkeypatch, capsys):
    """The converter's bars and lines are kept off the screen, the watchdog's last words are not."""

    def stuck(_arguments):
        print("*** 1. Extracting ZeRO fragments")
        for _ in universal.ds_to_universal.tqdm.tqdm([1, 2]):
            failure.speak("no progress for 30 minutes")
        raise OSError("the disk is full")

    monkeypatch.setattr(universal.ds_to_universal, "main", stuck)
    before, bars = Path.cwd(), universal.ds_to_universal.tqdm
    with pytest.raises(OSError, match="full"):
        universal.convert(make(tmp_path, 4), tmp_path / "converted", 1)
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("no progress"), shown.err.count("%|")) == ("", 2, 0)
    assert (Path.cwd(), universal.ds_to_universal.tqdm) == (before, bars)


def test_a_checkpoint_that_deepspeed_passes_over_is_an_error(tmp_path):
    engine = SimpleNamespace(load_checkpoint=lambda _folder, tag: (None, None))
    with pytest.raises(ValueError, match=r"step-00000004 cannot be resumed: DeepSpeed .* did not load it"):
        checkpoint._load(engine, make(tmp_path, 4))


def test_what_a_kill_left_half_written_is_removed_and_nothing_else(tmp_path):
    sound = make(tmp_path, 4)
    for name in ("step-00000006.partial", "step-00000002.old.partial", "step-00000004.universal.partial"):
        (tmp_path / name / "inside").mkdir(parents=True)
    (tmp_path / "step-00000005.damaged").mkdir()
    checkpoint.clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [sound.name, "step-00000005.damaged"]
