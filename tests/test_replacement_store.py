"""The folder: the same bytes however it is built, and nothing read from it that is not what was asked for."""

import dataclasses
import errno
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from fast_electra.replacements import replacement_store
from fast_electra.replacements.gumbel import NoiseKeys, gumbel_noise
from fast_electra.replacements.replacement_paths import TemperatureGrid, replacement_paths, sample
from fast_electra.replacements.replacement_store import (
    Provenance,
    ReplacementStore,
    begin,
    default_rows_per_shard,
    finish,
    write_shard,
)

PROVENANCE = Provenance(
    corpus="c0ffee",
    tokenizer="70c",
    auxiliary="a0c",
    masking="5eed",
    mask_rate=0.15,
    sequence_length=34,
    masked_per_row=5,
    vocab_size=700,
    seed=3,
    grid=TemperatureGrid.covering(1, 4),
    num_rows=11,
    num_draws=2,
    rows_per_shard=4,
)


def row_logits(row_key, provenance=PROVENANCE):
    generator = torch.Generator().manual_seed(row_key)
    return torch.randn(provenance.masked_per_row, provenance.vocab_size, generator=generator) * 3


def row_noise_keys(row_keys, provenance=PROVENANCE):
    n = provenance.masked_per_row
    return NoiseKeys(provenance.seed, np.repeat(row_keys, n), np.tile(np.arange(n), len(row_keys)))


def shard_paths(shard, batch_size=4, provenance=PROVENANCE):
    keys = list(provenance.shard_keys(shard))
    for i in range(0, len(keys), batch_size):
        batch = keys[i : i + batch_size]
        logits = torch.cat([row_logits(key, provenance) for key in batch])
        yield replacement_paths(logits, row_noise_keys(batch, provenance), provenance.grid)


def build(folder, provenance=PROVENANCE):
    for shard in begin(folder, provenance):
        write_shard(folder, provenance, shard, shard_paths(shard, provenance=provenance))
    finish(folder, provenance)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("paths"))


@pytest.fixture
def copy(built, tmp_path):
    for name, content in contents(built).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("temperature", [1.0, 1.37, 2.0, 4.0])
def test_any_rows_replay_the_argmax_with_their_noise(built, temperature):
    store = ReplacementStore(built)
    row_keys = np.array([21, 0, 13, 0, 4])
    tokens = store.tokens_at(row_keys, temperature)
    snapped = PROVENANCE.grid.temperature(PROVENANCE.grid.level(temperature))
    for row_key, row in zip(row_keys, tokens, strict=True):
        noise = gumbel_noise(row_noise_keys([row_key]), PROVENANCE.vocab_size)
        assert row.tolist() == sample(row_logits(int(row_key)), noise, snapped).tolist()
    assert tokens.dtype == np.int64


def test_the_bytes_do_not_depend_on_order_batches_or_interruptions(built, tmp_path):
    assert begin(tmp_path, PROVENANCE) == [0, 1, 2, 3, 4, 5]
    for shard in (5, 2, 0):
        write_shard(tmp_path, PROVENANCE, shard, shard_paths(shard, batch_size=1))

    def killed():
        yield from shard_paths(1, batch_size=2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, PROVENANCE, 1, killed())
    (tmp_path / ".partial-0123").write_bytes(b"what a kill leaves")
    missing = begin(tmp_path, PROVENANCE)
    assert missing == [1, 3, 4]
    for shard in reversed(missing):
        write_shard(tmp_path, PROVENANCE, shard, shard_paths(shard, batch_size=3))
    finish(tmp_path, PROVENANCE)
    assert contents(tmp_path) == contents(built)


def test_a_killed_process_leaves_only_whole_shards(built, tmp_path):
    """The process is killed in the middle of a shard's write, between the bytes and the rename."""
    script = (
        "import os, pathlib, sys; sys.path.insert(0, sys.argv[2]); import test_replacement_store as t;"
        "folder = pathlib.Path(sys.argv[1]); t.begin(folder, t.PROVENANCE); real = os.fsync; calls = [];"
        "os.fsync = lambda f: calls.append(f) or (os.kill(os.getpid(), 9) if len(calls) == 3 else real(f));"
        "[t.write_shard(folder, t.PROVENANCE, s, t.shard_paths(s)) for s in range(6)]"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    ended = subprocess.run(command, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert begin(tmp_path, PROVENANCE) == [2, 3, 4, 5]
    assert contents(build(tmp_path)) == contents(built)


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    begin(tmp_path, PROVENANCE)
    before = contents(tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(replacement_store.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path, PROVENANCE, 0, shard_paths(0))
    assert contents(tmp_path) == before


def test_an_unfinished_folder_is_not_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no replacement paths: run precompute"):
        ReplacementStore(tmp_path)
    begin(tmp_path, PROVENANCE)
    write_shard(tmp_path, PROVENANCE, 1, shard_paths(1))
    with pytest.raises(FileNotFoundError, match="is not finished: run precompute"):
        ReplacementStore(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"shards \[0, 2, 3, 4, 5\] are missing: run the same command again"):
        finish(tmp_path, PROVENANCE)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Provenance)])
def test_paths_of_anything_else_are_refused_by_name_and_values(built, tmp_path, field):
    value = getattr(PROVENANCE, field)
    changed = {"grid": TemperatureGrid.covering(1, 2), "separate_documents": not PROVENANCE.separate_documents}
    other = changed.get(field, value * 2)
    shown = (json.loads(json.dumps(value)), json.loads(json.dumps(other)))
    message = f"{field} is {shown[0]}, not {shown[1]}"
    with pytest.raises(ValueError, match="precompute paths for this run or change the run") as problem:
        ReplacementStore(built, **{"seed": PROVENANCE.seed, field: other})
    assert message in str(problem.value)
    begin(tmp_path, PROVENANCE)
    with pytest.raises(ValueError, match="choose another folder or delete this one") as problem:
        begin(tmp_path, dataclasses.replace(PROVENANCE, **{field: other}))
    assert message in str(problem.value)


def test_all_differences_are_reported_at_once_and_equal_values_accepted(built):
    ReplacementStore(built, **dataclasses.asdict(PROVENANCE))
    with pytest.raises(ValueError, match=r"corpus is c0ffee, not x; seed is 3, not 4"):
        ReplacementStore(built, corpus="x", seed=4)
    with pytest.raises(ValueError, match="colour is None, not blue"):
        ReplacementStore(built, colour="blue")


def test_a_flipped_byte_anywhere_is_found_before_its_shard_is_used(copy):
    path = copy / "shard-00002.bin"
    whole = path.read_bytes()
    for at in (0, 9, 21, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        store = ReplacementStore(copy)
        store.tokens_at([0, 7, 12], 1.5)
        with pytest.raises(
            ValueError, match=r"shard-00002.bin .* is damaged.*delete it and run the precomputation again"
        ):
            store.tokens_at([0, 8], 1.5)
        with pytest.raises(ValueError, match=r"shard-00002.bin"):
            store.verify()


def test_a_store_that_another_process_has_verified_is_not_hashed_again(copy, built, monkeypatch):
    expected = ReplacementStore(built).tokens_at([0, 7, 8], 1.5)
    monkeypatch.setattr(replacement_store.xxhash, "xxh3_64_digest", lambda _: pytest.fail("hashed"))
    assert (ReplacementStore(copy, verified=True).tokens_at([0, 7, 8], 1.5) == expected).all()
    (copy / "shard-00002.bin").write_bytes((copy / "shard-00001.bin").read_bytes())
    with pytest.raises(ValueError, match=r"shard-00002.bin has hash .* belongs to other paths"):
        ReplacementStore(copy, verified=True).tokens_at([8], 1.5)


def test_rows_are_foreseen_as_they_will_be_read(built, monkeypatch):
    told, keys = [], [21, 0, 13]
    monkeypatch.setattr("fast_electra.files.random_reads.foresee", lambda *asked: told.append(asked))
    store = ReplacementStore(built)
    store.foresee(keys)
    shards = [store._shards[key // 4] for key in keys]
    rows = [shard.row(key % 4) for shard, key in zip(shards, keys, strict=True)]
    assert [data[starts[0] : stops[0]].tobytes() for data, starts, stops in told[3:]] == rows
    assert [(starts, stops) for _, starts, stops in told[:3]] == [([1], [3]), ([0], [2]), ([1], [3])]
    with pytest.raises(ValueError, match="row key 22"):
        store.foresee([22])


def test_a_shard_that_several_threads_ask_for_is_hashed_once(built, monkeypatch):
    digest, hashed = replacement_store.xxhash.xxh3_64_digest, []

    def slow(data):
        hashed.append(len(data))
        time.sleep(0.3)
        return digest(data)

    monkeypatch.setattr(replacement_store.xxhash, "xxh3_64_digest", slow)
    store, together = ReplacementStore(built), threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda keys: (together.wait(timeout=20), store.foresee(keys)), [[0]] * 4))
    assert len(hashed) == 1


def test_a_shard_is_read_at_random_only_after_it_was_hashed(built, monkeypatch):
    digest, order = replacement_store.xxhash.xxh3_64_digest, []
    monkeypatch.setattr(replacement_store.xxhash, "xxh3_64_digest", lambda data: order.append("hash") or digest(data))
    monkeypatch.setattr("fast_electra.files.random_reads.expect", lambda _: order.append("random"))
    ReplacementStore(built).foresee([0])
    ReplacementStore(built, verified=True).foresee([0])
    assert order == ["hash", "random", "random"]


@pytest.mark.parametrize("size", [0, 5, 100])
def test_a_shard_cut_short_is_damaged(copy, size):
    (copy / "shard-00000.bin").write_bytes((copy / "shard-00000.bin").read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"shard-00000.bin \({size} bytes\) is damaged"):
        ReplacementStore(copy).tokens_at([0], 1)


def test_verify_names_every_bad_shard_and_the_same_command_repairs_them(copy, built):
    ReplacementStore(copy).verify()
    first, second = (copy / "shard-00000.bin", copy / "shard-00001.bin")
    swapped = first.read_bytes(), second.read_bytes()
    second.write_bytes(swapped[0])
    first.write_bytes(swapped[1])
    (copy / "shard-00004.bin").unlink()
    with pytest.raises(ValueError, match=r"(?s)00000.bin has hash .* belongs to other paths.*00001.bin.*00004.bin"):
        ReplacementStore(copy).verify()
    first.unlink()
    second.unlink()
    assert begin(copy, PROVENANCE) == [0, 1, 4]
    assert contents(build(copy)) == contents(built)


@pytest.mark.parametrize("name", ["manifest.json", "building.json"])
def test_a_manifest_that_is_none_is_refused(copy, name):
    (copy / "manifest.json").unlink()
    for content in ("", "[1]", '{"version": 3}'):
        (copy / name).write_text(content)
        with pytest.raises(ValueError, match=rf"{name}' is broken: .*run the precomputation again"):
            begin(copy, PROVENANCE)


def test_a_shard_takes_exactly_its_rows(tmp_path):
    begin(tmp_path, PROVENANCE)
    with pytest.raises(ValueError, match="4 rows for shard 5, which has 2"):
        write_shard(tmp_path, PROVENANCE, 5, shard_paths(0))
    with pytest.raises(ValueError, match="0 rows for shard 0, which has 4"):
        write_shard(tmp_path, PROVENANCE, 0, [])


@pytest.mark.parametrize("row_key", [-1, 22])
def test_a_row_key_outside_the_draws_is_refused(built, row_key):
    with pytest.raises(ValueError, match=rf"row key {row_key}: .* 2 draws of 11 rows: precompute more draws"):
        ReplacementStore(built).tokens_at([3, row_key], 1.5)


def test_a_temperature_outside_the_range_is_refused(built):
    with pytest.raises(ValueError, match=r"temperature 4.5 lies outside \[1.0, 4.0\]"):
        ReplacementStore(built).tokens_at([3], 4.5)


def test_the_manifest_counts_what_is_there(built):
    manifest = ReplacementStore(built).manifest
    num_bytes = sum(path.stat().st_size for path in built.glob("shard-*"))
    assert manifest["bytes_per_token"] == num_bytes / (22 * 34)
    assert manifest["bytes_per_masked_position"] == num_bytes / (22 * 5)
    entries = torch.cat([paths.counts for shard in range(6) for paths in shard_paths(shard)])
    assert manifest["positions_by_entries"] == torch.bincount(entries).tolist()


def test_shards_are_few_enough_to_be_open_at_once_and_small_enough_to_lose():
    assert default_rows_per_shard(100) == 256
    for num_keys in (10**7, 25_800_001):
        assert 500 <= -(-num_keys // default_rows_per_shard(num_keys)) <= 512


def test_a_corpus_token_takes_at_most_1_2_bytes_at_15_percent_masking(tmp_path):
    provenance = dataclasses.replace(
        PROVENANCE, sequence_length=512, masked_per_row=77, vocab_size=32000, num_rows=4, num_draws=1
    )
    build(tmp_path, provenance)
    assert ReplacementStore(tmp_path).manifest["bytes_per_token"] < 1.2
