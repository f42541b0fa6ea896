import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fast_electra.batching.batches import AHEAD, Batches, MaskedBatch, prefetch
from fast_electra.models.statistic import unigram
from fast_electra.settings.config import DataConfig

LENGTH = 16
DATA = DataConfig(sequence_length=LENGTH, held_out_rows=20)


class FakeTokenizer:
    cls_token_id, unk_token_id, all_special_ids = 2, 1, (0, 1, 2, 3, 4)

    def __len__(self):
        return 30_000


def corpus(num_tokens, start=10, seed=0):
    """A corpus in memory whose tokens tell where they stand: token = start + place modulo 5000."""
    tokens = (np.arange(num_tokens) % 5000 + start).astype(np.uint16)
    lengths = np.random.default_rng(seed).integers(3, 40, size=num_tokens)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokenizer = FakeTokenizer()
    return SimpleNamespace(
        path="somewhere",
        tokens=tokens,
        num_tokens=num_tokens,
        document_starts=starts[starts < num_tokens],
        tokenizer=tokenizer,
    )


@pytest.fixture
def batches():
    return Batches([(corpus(15 * 300 + 7), 1.0)], DATA, seed=0)


def test_a_row_is_cls_and_the_next_tokens_of_the_corpus(batches):
    batch = batches.masked(np.array([3]))
    assert batch.input_ids.shape == (1, LENGTH)
    assert batch.input_ids[0, 0] == 2
    assert batch.input_ids[0, 1:].tolist() == list(range(10 + 45, 10 + 60))
    assert batch.positions.shape == (1, DATA.num_masked)


def test_one_pass_reads_every_training_row_once_and_no_held_out_row(batches):
    rows = batches.training(0, 280).rows
    assert sorted(rows.tolist()) == list(range(280))
    assert batches.held_out(0, 20).rows.tolist() == list(range(280, 300))


def test_each_pass_has_an_order_and_masks_of_its_own(batches):
    first, second = batches.training(0, 280), batches.training(280, 280)
    assert sorted((second.rows % 300).tolist()) == list(range(280))
    assert not torch.equal(first.rows, second.rows % 300)
    same_row = [
        (first.positions[i], second.positions[(second.rows % 300 == row).nonzero().item()])
        for i, row in enumerate(first.rows.tolist()[:20])
    ]
    assert any(not torch.equal(a, b) for a, b in same_row)


def test_any_share_of_any_batch_can_be_made_alone(batches):
    whole = batches.training(1000, 64)
    for count in (1, 16, 32):
        parts = [batches.training(1000 + first, count) for first in range(0, 64, count)]
        for name in ("input_ids", "positions", "rows"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))


def threads():
    return [each for each in threading.enumerate() if each.name.startswith("batches")]


def test_prefetching_gives_the_same_batches_in_order(batches, monkeypatch):
    spans, training = [(0, 8), (8, 8), (64, 4), *((8 * n, 8) for n in range(20))], batches.training

    def late(first, count):
        time.sleep(0.02 * (first % 3))  # the first is not the first to be ready
        return training(first, count)

    monkeypatch.setattr(batches, "training", late)
    for got, span in zip(prefetch(batches, iter(spans)), spans, strict=True):
        for mine, expected in zip(got, training(*span), strict=True):
            assert torch.equal(mine, expected)
    assert not threads()


def test_several_batches_are_made_at_the_same_time_and_no_more_are_held(batches, monkeypatch):
    together, training, drawn = threading.Barrier(AHEAD), batches.training, []
    monkeypatch.setattr(batches, "training", lambda *span: (together.wait(timeout=20), training(*span))[1])
    made = prefetch(batches, (drawn.append(n) or (8 * n, 8) for n in range(3 * AHEAD)))
    next(made)
    assert len(drawn) == AHEAD + 1
    assert len(list(made)) == 3 * AHEAD - 1


def test_batches_are_pinned_on_threads_that_know_their_processs_gpu(batches, monkeypatch):
    """A new thread's GPU is the first: what it asks of it would make a context there, in every process of a machine."""
    known, pinned = set(), []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: known.add((threading.get_ident(), gpu)))
    monkeypatch.setattr(MaskedBatch, "pinned", lambda batch: pinned.append((threading.get_ident(), 3)) or batch)
    assert len(list(prefetch(batches, [(8 * n, 8) for n in range(2 * AHEAD)], pin=True))) == len(pinned)
    assert set(pinned) <= known
    list(prefetch(batches, [(0, 8)]))
    assert len(pinned) == 2 * AHEAD


def test_an_error_while_prefetching_reaches_the_loop_in_its_place(batches, monkeypatch):
    training = batches.training

    def fail(first, count):
        if first == 16:
            raise ValueError(f"row {first} is unreadable")
        return training(first, count)

    monkeypatch.setattr(batches, "training", fail)
    made = prefetch(batches, ((8 * n, 8) for n in range(20)))
    assert [next(made).rows.tolist() for _ in range(2)] == [training(8 * n, 8).rows.tolist() for n in range(2)]
    with pytest.raises(ValueError, match="row 16 is unreadable"):
        next(made)
    assert not threads()


def test_threads_end_with_the_loop_and_begin_nothing_more(batches, monkeypatch):
    training, begun, go_on = batches.training, [], threading.Event()

    def slow(first, count):
        begun.append(first)
        assert first == 0 or go_on.wait(timeout=20)
        return training(first, count)

    monkeypatch.setattr(batches, "training", slow)
    monkeypatch.setattr("fast_electra.batching.batches.ThreadPoolExecutor", lambda _, *of: ThreadPoolExecutor(2, *of))
    made = prefetch(batches, ((8 * n, 8) for n in range(20)))
    next(made)
    assert threads()
    threading.Timer(0.2, go_on.set).start()
    made.close()
    assert not threads()
    assert len(begun) <= 3


def test_what_else_will_be_read_is_foreseen_with_each_batch(batches):
    seen = []
    made = list(prefetch(batches, [(0, 8), (8, 8)], foresee=seen.append))
    assert sorted(batch.rows.tolist() for batch in seen) == sorted(batch.rows.tolist() for batch in made)


def test_scattered_rows_are_foreseen_and_those_in_order_left_to_the_kernel(batches, monkeypatch):
    told = []
    monkeypatch.setattr("fast_electra.files.random_reads.foresee", lambda *asked: told.append(asked))
    batches.masked(np.arange(8))
    assert not told
    batches.masked(np.array([3, 0, 9]))
    ((tokens, starts, stops),) = told
    assert tokens is batches.corpora[0].tokens
    assert (starts.tolist(), stops.tolist()) == ([45, 0, 135], [60, 15, 150])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel tells of its advice on Linux alone")
def test_a_corpus_is_read_ahead_until_training_begins(tmp_path):
    """The kernel's own word: the flag "rr" of a map, random reads."""
    made, path = corpus(15 * 300 + 7), tmp_path / "tokens.bin"
    made.tokens.tofile(path)
    made.tokens = np.memmap(path, dtype=np.uint16, mode="r")

    def flags():
        _, _, after = Path("/proc/self/smaps").read_text().partition(str(path))
        return after.partition("VmFlags:")[2].partition("\n")[0].split()

    batches = Batches([(made, 1.0)], DATA, seed=0)
    unigram([(made.tokens, 1.0)], 30_000)
    expected = batches.training(0, 8)
    assert "rd" in flags()
    assert "rr" not in flags()
    (got,) = prefetch(batches, [(0, 8)])
    assert "rr" in flags()
    assert torch.equal(got.input_ids, expected.input_ids)


def test_several_corpora_are_mixed_by_weight():
    batches = Batches([(corpus(15 * 900), 3.0), (corpus(15 * 300, start=20_000), 1.0)], DATA, seed=0)
    rows = batches.training(0, 4096).rows.numpy() % batches.num_rows
    second = rows >= 900
    assert second.mean() == pytest.approx(0.25, abs=1e-3)
    assert abs(second[:400].mean() - 0.25) < 0.01
    ids = batches.training(0, 64)
    assert ((ids.input_ids[:, 1:] >= 20_000).all(1) == torch.from_numpy(second[:64])).all()
    assert batches.num_held_out == 20
    assert batches.held_out(0, 20).rows.tolist() == [*range(885, 900), *range(1195, 1200)]


def test_rows_are_known_by_what_corpora_hold_and_by_their_shares_not_by_where_they_lie():
    first, second = corpus(15 * 900), corpus(15 * 300)
    first.fingerprint, second.fingerprint = "abc", "xyz"
    assert Batches([(first, 3.0)], DATA, seed=0).identity() == {"corpus 1": "abc"}
    both = Batches([(first, 3.0), (second, 1.0)], DATA, seed=0).identity()
    assert both == {"corpus 1": "abc, 75.0000% of the rows", "corpus 2": "xyz, 25.0000% of the rows"}
    assert Batches([(first, 0.6), (second, 0.2)], DATA, seed=0).identity() == both


def test_a_weight_too_small_to_be_drawn_is_refused():
    with pytest.raises(ValueError, match="would never be read"):
        Batches([(corpus(15 * 300), 1.0), (corpus(15 * 300), 1e-6)], DATA, seed=0)


def test_document_numbers_follow_the_corpus_index(batches):
    numbers = batches.documents(np.array([0, 7]))
    starts = batches.corpora[0].document_starts
    for row, line in zip((0, 7), numbers, strict=True):
        for place, number in zip(range(row * 15, row * 15 + 15), line[1:], strict=True):
            assert starts[number] <= place
            assert number + 1 == len(starts) or place < starts[number + 1]
        assert line[0] == line[1]


def test_positions_restart_where_a_document_begins_whatever_the_batch(batches):
    assert batches.training(0, 4).position_ids.numel() == 0
    apart = Batches([(corpus(15 * 300 + 7), 1.0)], replace(DATA, separate_documents=True), seed=0)
    whole, parts = apart.training(280, 32), [apart.training(280 + first, 8) for first in range(0, 32, 8)]
    assert torch.equal(whole.position_ids, torch.cat([part.position_ids for part in parts]))
    assert torch.equal(whole.input_ids, batches.training(280, 32).input_ids)
    starts = apart.corpora[0].document_starts
    for row, found in zip((whole.rows % 300).tolist(), whole.position_ids.tolist(), strict=True):
        begins = [0, *(1 + starts[(starts > 15 * row) & (starts < 15 * row + 15)] - 15 * row)]
        assert found == [place - max(begin for begin in begins if begin <= place) for place in range(LENGTH)]


def test_document_lengths_are_those_of_the_rows():
    apart = replace(DATA, separate_documents=True)
    batches = Batches([(corpus(15 * 300 + 7), 3.0), (corpus(15 * 100, seed=1), 1.0)], apart, seed=0)
    ends = np.roll(batches.masked(np.arange(400)).position_ids.numpy() == 0, -1, axis=1)
    lengths = np.diff(np.flatnonzero(ends.ravel()), prepend=-1)
    assert batches.document_lengths().tolist() == lengths.tolist()
    assert (lengths < LENGTH).any()


def test_of_many_rows_some_of_all_corpora_are_counted(monkeypatch):
    monkeypatch.setattr("fast_electra.batching.batches._COUNTED_ROWS", 40)
    apart = replace(DATA, separate_documents=True)
    batches = Batches([(corpus(15 * 300 + 7), 3.0), (corpus(15 * 100, seed=1), 1.0)], apart, seed=0)
    rows = np.linspace(0, 399, 40).astype(int)
    ends = np.roll(batches.masked(rows).position_ids.numpy() == 0, -1, axis=1)
    assert batches.document_lengths().tolist() == np.diff(np.flatnonzero(ends.ravel()), prepend=-1).tolist()


def test_a_corpus_with_fewer_rows_than_are_held_out_is_refused():
    with pytest.raises(ValueError, match=r"holds 20 rows of 16 tokens, and 20 are held out"):
        Batches([(corpus(15 * 20), 1.0)], DATA, seed=0)


def test_a_sample_far_into_the_run_is_as_near_as_the_first(batches):
    batch = batches.training(10**9, 4)
    assert (batch.rows // 300 == 10**9 // 280).all()


def test_with_a_number_of_draws_the_masks_come_round_again_but_not_the_order():
    data = DataConfig(sequence_length=LENGTH, held_out_rows=20, num_draws=2)
    batches = Batches([(corpus(15 * 300 + 7), 1.0)], data, seed=0)
    passes = [batches.training(280 * number, 280) for number in range(3)]
    assert [(each.rows // 300).unique().tolist() for each in passes] == [[0], [1], [0]]
    assert not torch.equal(passes[0].rows, passes[2].rows)
    in_order = [each.positions[each.rows.argsort()] for each in passes]
    assert torch.equal(in_order[0], in_order[2])
    assert not torch.equal(in_order[0], in_order[1])
