"""BLiMP (Warstadt et al., TACL 2020): does a model prefer the grammatical sentence of a minimal pair? No fine-tuning.

A discriminator scores a sentence by the sum over its tokens of log P(original), a masked LM by its
pseudo-log-likelihood (Salazar et al., ACL 2020). `sum` leaves [CLS], [SEP] and [UNK] out: they are never replaced
in training, so that what is said of them is no judgement of the sentence. The other `VARIANTS` are computed from the
same pass: `mean` a token, which takes away what a longer sentence loses by its length alone, and `sum_with_special`,
which keeps them. Pairs that score the same count half.

Sentences of one length make a batch, without padding: as many shapes as there are lengths. Of each batch, every process
takes the same number of rows, because under ZeRO-3 all have to call the engine equally often.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fast_electra.settings.require import require

VARIANTS = ("sum", "mean", "sum_with_special")
BATCH_TOKENS = 4096


class Pair(NamedTuple):
    """A minimal pair: two sentences, the first of them grammatical, its paradigm and the field of that."""

    good: str
    bad: str
    paradigm: str
    field: str


class Score(NamedTuple):
    """`token_scores` takes tokens (B, T) on `device` and gives log-probabilities (B, T); all processes call it.

    `share` is (this process's number, how many there are).
    """

    token_scores: Callable[[Tensor], Tensor]
    special_ids: Sequence[int]
    device: torch.device
    share: tuple[int, int] = (0, 1)


def load(folder: str | Path, pairs_per_paradigm: int = 0) -> list[Pair]:
    """The pairs in a folder of BLiMP's PARADIGM.jsonl files, the first of each paradigm; 0 means all.

    Raises ValueError when there is none, or naming the line that is no pair.
    """
    files = sorted(Path(folder).glob("*.jsonl"))
    require(bool(files), "blimp", str(folder), "no .jsonl file is there; give the folder of BLiMP's data")
    require(pairs_per_paradigm >= 0, "blimp_pairs", pairs_per_paradigm, "give 0, all of them, or more")
    pairs = []
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(islice(lines, pairs_per_paradigm or None), start=1):
                try:
                    row = json.loads(line)
                    # One paradigm of the published files spells its field "syntax/semantics", all others with "_".
                    field = row["field"].replace("/", "_")
                    pairs.append(Pair(row["sentence_good"], row["sentence_bad"], row["UID"], field))
                except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                    raise ValueError(
                        f"{file}:{number} is no BLiMP pair ({type(error).__name__}: {error}); bring the file anew"
                    ) from error
    require(bool(pairs), "blimp", str(folder), "its .jsonl files are empty; bring BLiMP's data anew")
    return pairs


def encode(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of every sentence, special ones at its ends: all good ones, then all bad ones."""
    sentences = [pair.good for pair in pairs] + [pair.bad for pair in pairs]
    return tokenizer(sentences, verbose=False)["input_ids"]


@torch.no_grad()
def sentence_scores(sentences: Sequence[Sequence[int]], how: Score) -> Tensor:
    """Scores (S, variants), float64, on the CPU; 0 for sentences that are other processes': sum over processes."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, sentence in enumerate(sentences):
        by_length[len(sentence)].append(number)
    scores = torch.zeros(len(sentences), len(VARIANTS), dtype=torch.float64)
    rank, processes = how.share
    for length, members in sorted(by_length.items()):
        rows = max(1, BATCH_TOKENS // length)
        for start in range(0, len(members), rows * processes):
            batch = members[start : start + rows * processes]
            mine = batch[rank::processes]
            tokens = torch.tensor([sentences[number] for number in mine or batch[:1]], device=how.device)
            made = _variants(how.token_scores(tokens), tokens, how.special_ids)
            scores[mine] = made[: len(mine)].cpu()
    return scores


def _variants(token_scores: Tensor, tokens: Tensor, special_ids: Sequence[int]) -> Tensor:
    """(B, variants) of token scores (B, T)."""
    each = token_scores.double()
    ordinary = ~torch.isin(tokens, torch.tensor(list(special_ids), device=tokens.device))
    total = (each * ordinary).sum(dim=1)
    return torch.stack([total, total / ordinary.sum(dim=1).clamp(min=1), each.sum(dim=1)], dim=1)


def report(pairs: Sequence[Pair], scores: Tensor) -> dict[str, Any]:
    """Shares of pairs whose good sentence scores higher; `scores` as `sentence_scores` gives them for `encode`'s.

    `accuracy` is the mean over paradigms of the variant `sum`, `variants` that of each variant, `fields` and
    `paradigms` the accuracy of each of these.
    """
    good, bad = scores[: len(pairs)], scores[len(pairs) :]
    right = (good > bad).double() + (good == bad).double() / 2  # (pairs, variants)
    paradigms: dict[str, list[int]] = defaultdict(list)
    fields: dict[str, set[str]] = defaultdict(set)
    for number, pair in enumerate(pairs):
        paradigms[pair.paradigm].append(number)
        fields[pair.field].add(pair.paradigm)
    means = {name: right[members].mean(dim=0) for name, members in paradigms.items()}
    overall = torch.stack(list(means.values())).mean(dim=0)
    of_field = {name: torch.stack([means[each] for each in inside]).mean(dim=0) for name, inside in fields.items()}
    return {
        "accuracy": float(overall[0]),
        "pairs": len(pairs),
        "variants": dict(zip(VARIANTS, overall.tolist(), strict=True)),
        "fields": {name: float(mean[0]) for name, mean in sorted(of_field.items())},
        "paradigms": {name: float(mean[0]) for name, mean in means.items()},
    }
