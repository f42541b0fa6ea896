"""One or several weighted corpora → rows of exactly `sequence_length` tokens → endless masked batches.

A row is [CLS] followed by the next T - 1 tokens of the corpus, packed across documents: no padding, no truncation.
The place of a sample in the endless order is one integer; everything else (which corpus, which row, which masked
positions) is computed from it, so that a loader resumes at sample 10^9 as fast as at sample 0 and every process can
make any share of any batch. Batches are read straight from the memory map, of which the kernel is told the rows first
(random_reads.py).
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fast_electra.batching.masking import masked_positions
from fast_electra.batching.randomness import permute
from fast_electra.batching.separation import WHOLE_ROWS, places
from fast_electra.corpora.corpus import Corpus, require_known_ids
from fast_electra.files import random_reads
from fast_electra.settings.config import DataConfig
from fast_electra.settings.require import require

AHEAD = 4  # batches that are being made while one is used
_PERIOD, _COUNTED_ROWS = 4096, 2**14


class MaskedBatch(NamedTuple):
    """Original tokens `input_ids` (B, T), sorted masked `positions` (B, N), and the key of each row, `rows` (B,).

    The keys stay on the host, which hashes them and looks rows up by them. `position_ids` (B, T), each token's place in
    its document, keep documents apart (separation.py).
    """

    input_ids: Tensor
    positions: Tensor
    rows: Tensor
    position_ids: Tensor = WHOLE_ROWS

    def to(self, device: torch.device) -> "MaskedBatch":
        """The batch where it is computed on, but for its keys; nothing waits for it."""
        on_device = (self.input_ids, self.positions, self.position_ids)
        input_ids, positions, position_ids = (each.to(device, non_blocking=True) for each in on_device)
        return MaskedBatch(input_ids, positions, self.rows, position_ids)

    def pinned(self) -> "MaskedBatch":
        """The batch in page-locked memory, from which a GPU copies while both go on."""
        return MaskedBatch(
            self.input_ids.pin_memory(), self.positions.pin_memory(), self.rows, self.position_ids.pin_memory()
        )


class Batches:
    """Training and held-out rows of one or several corpora that share a tokenizer.

    The last rows of each corpus, `data.held_out_rows` in all, are never trained on. Row numbers count through the
    corpora in the order given.
    """

    def __init__(self, corpora: list[tuple[Corpus, float]], data: DataConfig, seed: int) -> None:
        self.corpora, self.weights = [corpus for corpus, _ in corpora], [weight for _, weight in corpora]
        self.data, self.seed = data, seed
        tokenizer = self.corpora[0].tokenizer
        self.cls_id, self.special_ids = tokenizer.cls_token_id, list(tokenizer.all_special_ids)
        self.unknown_id, self.vocab_size = tokenizer.unk_token_id, len(tokenizer)
        weights = np.array(self.weights)
        rows = np.array([corpus.num_tokens // (data.sequence_length - 1) for corpus in self.corpora])
        held_out = np.maximum(1, np.round(data.held_out_rows * weights / weights.sum())).astype(np.int64)
        for corpus, available, held in zip(self.corpora, rows, held_out, strict=True):
            require(
                bool(available > held),
                "corpus",
                str(corpus.path),
                f"it holds {available} rows of {data.sequence_length} tokens, and {held} are held out for evaluation; "
                "give more text, shorter rows (data.sequence_length) or fewer data.held_out_rows",
            )
        self.num_rows, self.num_training = int(rows.sum()), rows - held_out
        self.num_held_out = int(held_out.sum())
        self.offsets = np.cumsum(rows) - rows
        self.turns = _interleave(weights)
        missing = np.setdiff1d(np.arange(len(corpora)), self.turns)
        if missing.size:
            raise ValueError(
                f"corpus: {self.corpora[missing[0]].path} has {weights[missing[0]] / weights.sum():.2g} of the weight "
                f"and would never be read; give it at least {1 / _PERIOD:.2g}, or leave it out"
            )

    def identity(self) -> dict[str, str]:
        """What the rows are made of, wherever it lies: each corpus's fingerprint, with its weight where there are more.

        A corpus too many or too few changes the shares of the others.
        """
        several, total = len(self.corpora) > 1, sum(self.weights)
        return {
            f"corpus {number}": corpus.fingerprint + (f", {weight / total:.4%} of the rows" if several else "")
            for number, (corpus, weight) in enumerate(zip(self.corpora, self.weights, strict=True), start=1)
        }

    def training(self, first: int, count: int) -> MaskedBatch:
        """Samples `first` to `first + count - 1` of the endless training order."""
        return self.masked(self.row_keys(np.arange(first, first + count, dtype=np.int64)))

    def held_out(self, first: int, count: int, every: int = 1) -> MaskedBatch:
        """`count` held-out rows, each `every`-th from `first` on, always with the same masks; corpus after corpus."""
        keys = np.concatenate(
            [
                offset + np.arange(training, corpus.num_tokens // (self.data.sequence_length - 1))
                for corpus, offset, training in zip(self.corpora, self.offsets, self.num_training, strict=True)
            ]
        )
        return self.masked(keys[first : first + count * every : every])

    def row_keys(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The key, draw * num_rows + row, of each sample: each pass over a corpus has an order of its own.

        Its masks are of draw number pass, modulo `data.num_draws` where that is not 0.
        """
        turn = samples % _PERIOD
        which = self.turns[turn]
        per_period = np.bincount(self.turns, minlength=len(self.corpora))
        earlier = np.stack([np.cumsum(self.turns == c) - (self.turns == c) for c in range(len(self.corpora))])
        nth = samples // _PERIOD * per_period[which] + earlier[which, turn]
        keys = np.empty_like(samples)
        for c, size in enumerate(self.num_training):
            mine = which == c
            epoch = nth[mine] // size
            row = permute(self.seed + c, epoch, nth[mine] % size, int(size))
            draw = epoch % self.data.num_draws if self.data.num_draws else epoch
            keys[mine] = draw * self.num_rows + self.offsets[c] + row
        return keys

    def masked(self, keys: NDArray[np.int64]) -> MaskedBatch:
        """The rows of these keys with their masked positions.

        Raises ValueError for a token id outside of the vocabulary, which a corpus that was not verified may have.
        """
        input_ids, count = self.tokens(keys), self.data.num_masked
        positions = masked_positions(input_ids, keys, count, self.seed, self.special_ids, self.unknown_id)
        batch = MaskedBatch(torch.from_numpy(input_ids), torch.from_numpy(positions), torch.from_numpy(keys))
        if self.data.separate_documents:
            return batch._replace(position_ids=torch.from_numpy(places(self.documents(keys))))
        return batch

    def tokens(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens (B, T) of the rows of these keys. Raises ValueError as `masked` does."""
        input_ids = np.empty((len(keys), self.data.sequence_length), dtype=np.int64)
        input_ids[:, 0] = self.cls_id
        for corpus, mine, place in self._places(keys):
            if (np.diff(place[:, 0]) != place.shape[1]).any():  # rows in order are read ahead by the kernel itself
                random_reads.foresee(corpus.tokens, place[:, 0], place[:, -1] + 1)
            input_ids[mine, 1:] = corpus.tokens[place]
            require_known_ids(input_ids[mine, 1:], self.vocab_size, corpus.path, f"near token {place[0, 0]:,}")
        return input_ids

    def documents(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number, within its corpus, of the document that each token (B, T) belongs to; [CLS] joins the first."""
        numbers = np.empty((len(keys), self.data.sequence_length), dtype=np.int64)
        for corpus, mine, place in self._places(keys):
            numbers[mine, 1:] = np.searchsorted(corpus.document_starts, place, side="right") - 1
        numbers[:, 0] = numbers[:, 1]
        return numbers

    def document_lengths(self) -> NDArray[np.int64]:
        """How many tokens of one document stand together in a row, for each document in each row, [CLS] counted.

        Of more than `_COUNTED_ROWS` rows as many are counted, evenly spread over all.
        """
        rows = np.linspace(0, self.num_rows - 1, min(self.num_rows, _COUNTED_ROWS)).astype(np.int64)
        begins = np.ones((len(rows), self.data.sequence_length), dtype=bool)
        for part in np.array_split(np.arange(len(rows)), -(-len(rows) // 1024)):
            begins[part, 1:] = np.diff(self.documents(rows[part]), axis=1) != 0
        return np.diff(np.flatnonzero(begins), append=begins.size)

    def _places(self, keys: NDArray[np.int64]) -> Iterator[tuple[Corpus, NDArray[np.bool_], NDArray[np.int64]]]:
        """For each corpus: which of the keys are its rows, and where in its token stream they lie (b, T - 1)."""
        row, width = keys % self.num_rows, self.data.sequence_length - 1
        which = np.searchsorted(self.offsets, row, side="right") - 1
        for c, corpus in enumerate(self.corpora):
            mine = which == c
            if mine.any():
                yield corpus, mine, (row[mine] - self.offsets[c])[:, None] * width + np.arange(width)[None, :]


def even_share(rows: int, most: int) -> int:
    """The largest number up to `most` that divides `rows`."""
    return next(share for share in range(min(rows, most), 0, -1) if rows % share == 0)


def _interleave(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """The corpus of each turn in a period, always the one furthest behind its weight (as Megatron's blending does)."""
    share, given = weights / weights.sum(), np.zeros(len(weights))
    turns = np.empty(_PERIOD, dtype=np.int64)
    for turn in range(_PERIOD):
        turns[turn] = np.argmax(share * (turn + 1) - given)
        given[turns[turn]] += 1
    return turns


def prefetch(
    batches: Batches,
    spans: Iterable[tuple[int, int]],
    pin: bool = False,
    foresee: Callable[[MaskedBatch], None] | None = None,
) -> Generator[MaskedBatch, None, None]:
    """The training batches of these (first, count) spans in order, the next `AHEAD` made while one is used.

    Each is made on a thread of its own, so that storage that answers slowly is asked for all of them. `pin` puts them
    into page-locked memory. `foresee` is called there with each, to ask for what else will be read. At most `AHEAD`
    batches beside the one in use are in memory, 8 bytes a token and masked position.

    From here on the corpora are taken to be read at random: to scan one, do it before. What a batch raises is raised
    in its place. Closed or read to its end, its threads have ended.
    """

    def make(first: int, count: int) -> MaskedBatch:
        batch = batches.training(first, count)
        if foresee is not None:
            foresee(batch)
        return batch.pinned() if pin else batch

    for corpus in batches.corpora:
        random_reads.expect(corpus.tokens)
    # Pinning asks the current GPU what has been copied, and a new thread's is the first, not its process's.
    own = partial(torch.cuda.set_device, torch.cuda.current_device()) if pin else None
    pool, pending = ThreadPoolExecutor(AHEAD, "batches", own), deque[Future[MaskedBatch]]()
    try:
        for span in spans:
            pending.append(pool.submit(make, *span))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
