"""Checkpoint folders without an engine; with one they are tested end to end."""

import json

import pytest

from fast_electra import checkpoint


def make(folder, step, text="weights"):
    path = folder / f"step-{step:08d}"
    (path / "zero").mkdir(parents=True)
    (path / "zero" / "rank0.pt").write_text(text)
    files = {"zero/rank0.pt": {"bytes": len(text), "xxh3_128": checkpoint._hash(path / "zero" / "rank0.pt")}}
    manifest = {"step": step, "rows_seen": step * 8, "seconds": 1.5, "num_processes": 1, "files": files}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


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
    ],
    ids=["a changed byte", "cut short", "a file gone", "no JSON", "a list", "keys missing", "no manifest"],
)
def test_a_damaged_newest_one_is_named_set_aside_and_passed_over(tmp_path, damage, capsys):
    sound, broken = make(tmp_path, 1), make(tmp_path, 2)
    damage(broken)
    path, _ = checkpoint.newest_sound(tmp_path)
    assert path == sound
    assert not broken.exists()
    assert broken.with_name(broken.name + ".damaged").exists()
    assert str(broken) in capsys.readouterr().out
