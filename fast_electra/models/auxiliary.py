"""The auxiliary model: an existing masked LM, frozen, asked for samples at the masked positions only.

Any transformers masked LM serves. Its own head runs on the (B, N) masked positions instead of all (B, T), because a
hook gathers them where the encoder ends; vocabulary logits for every token would cost more than the encoder. Rows go
through in chunks, so that float32 logits never pass `LOGITS_BUDGET_MIB`; a GPU takes more at once, for which its
kernels are then long enough to hide their starts.

A sample is drawn at one uniform per position keyed by (seed, row key, position): it does not depend on the number of
processes or the batch. Special tokens are never sampled.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fast_electra.batching import separation
from fast_electra.batching.batches import Batches, MaskedBatch, even_share
from fast_electra.batching.separation import WHOLE_ROWS
from fast_electra.corpora import tokenizer as tokenizers
from fast_electra.kernels.vocabulary_logits import sample
from fast_electra.models.encoder import positions_available, with_new_weights
from fast_electra.models.statistic import uniforms

LOGITS_BUDGET_MIB, _LOGITS_BUDGET_MIB = {"cpu": 256}, 1024  # by the kind of device; any other
MOST_ROWS = 256
ASKED_ROWS = 64  # of a batch where nothing is trained: the gate's and the precomputation's


def rows_at_once(num_rows: int, num_masked: int, vocab_size: int, device_type: str = "cpu") -> int:
    """How many of `num_rows` rows go through the model together: their float32 logits (rows, N, V) stay inside the
    budget. An even share of them where one is not much smaller, because each size is compiled by itself."""
    budget = LOGITS_BUDGET_MIB.get(device_type, _LOGITS_BUDGET_MIB) * 2**20
    most = max(1, min(num_rows, MOST_ROWS, int(budget / (4 * num_masked * vocab_size))))
    even = even_share(num_rows, most)
    return even if 2 * even > most else most


class MaskedLM(nn.Module):
    """A stock masked LM whose head sees the masked positions only."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._positions: Tensor | None = None
        model.base_model.register_forward_hook(self._gather)
        separation.prepare(model)

    def forward(self, input_ids: Tensor, positions: Tensor, position_ids: Tensor = WHOLE_ROWS) -> Tensor:
        """Vocabulary logits (B, N, V) at `positions` (B, N) of `input_ids` (B, T), which hold [MASK] there."""
        self._positions = positions
        return self.model(input_ids=input_ids, **separation.inputs(self.model, position_ids)).logits

    def _gather(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        assert self._positions is not None
        hidden = output[0]  # (B, T, H)
        index = self._positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        output.last_hidden_state = hidden.gather(1, index)  # (B, N, H)
        return output


def build_masked_lm(config: PreTrainedConfig, attention: str, dtype: torch.dtype) -> PreTrainedModel:
    """A masked LM with new weights."""
    return with_new_weights(AutoModelForMaskedLM.from_config, config, attention, dtype)


def mask_out(batch: MaskedBatch, mask_id: int) -> Tensor:
    """The batch's tokens (B, T) with [MASK] at its masked positions."""
    return batch.input_ids.scatter(1, batch.positions, mask_id)


class Auxiliary:
    """The frozen model and the tokens it may sample: `predict(input_ids, positions, position_ids)` -> (B, N, V).

    `compiled` has the pass over its logits compiled too, into one graph for all temperatures.
    """

    def __init__(
        self,
        predict: Callable[[Tensor, Tensor, Tensor], Tensor],
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        compiled: bool = False,
    ) -> None:
        self.predict, self.seed = predict, seed
        self._sample = torch.compile(sample, dynamic=False) if compiled else sample
        self.mask_id, self.vocab_size = cast(int, tokenizer.mask_token_id), len(tokenizer)
        self.pad_id = cast(int, tokenizer.pad_token_id)
        self.special_ids = torch.tensor(sorted(tokenizer.all_special_ids))

    @torch.no_grad()
    def predictions(self, batch: MaskedBatch) -> Iterator[tuple[slice, Tensor]]:
        """Chunks of rows with their logits (b, N, V) as the model gives them, padding of the vocabulary left out."""
        num_rows, num_masked = batch.positions.shape
        chunk = rows_at_once(num_rows, num_masked, self.vocab_size, batch.positions.device.type)
        masked = mask_out(batch, self.mask_id)
        self.special_ids = self.special_ids.to(masked.device)  # moves once
        for start in range(0, num_rows, chunk):
            rows = slice(start, min(start + chunk, num_rows))
            logits = self.predict(masked[rows], batch.positions[rows], batch.position_ids[rows])
            yield rows, logits[..., : self.vocab_size]

    def logits(self, batch: MaskedBatch) -> Iterator[tuple[slice, Tensor]]:
        """Chunks of rows with their float32 logits (b, N, V), special tokens at -inf."""
        for rows, logits in self.predictions(batch):
            yield rows, logits.float().index_fill(-1, self.special_ids, -torch.inf)

    @torch.no_grad()
    def sample(self, batch: MaskedBatch, temperature: float) -> Tensor:
        """A token (B, N) for each masked position, drawn from softmax(logits / temperature)."""
        each = uniforms(batch, self.seed)
        value = torch.full((), temperature, dtype=torch.float64, device=each.device)
        parts = self.predictions(batch)
        return torch.cat([self._sample(logits, value, each[rows], self.special_ids) for rows, logits in parts])

    def accuracy(self, batches: Batches, num_rows: int, device: torch.device) -> tuple[float, float, int]:
        """On `num_rows` held-out rows, of all corpora: share of masked tokens predicted, of the most frequent one, and
        how many they are."""
        hits, targets = 0, []
        for asked in _asked(batches, num_rows):
            batch = asked.to(device)
            target = batch.input_ids.gather(1, batch.positions)
            targets.append(target.flatten())
            for rows, logits in self.logits(batch):
                hits += int((logits.argmax(dim=-1) == target[rows]).sum())
        most_frequent, total = _most_frequent(torch.cat(targets))
        return hits / total, most_frequent, total


def load(path: str, tokenizer: PreTrainedTokenizerBase, sequence_length: int, dtype: torch.dtype) -> PreTrainedModel:
    """The masked LM in a folder or on the hub, frozen, in eval mode.

    No code comes with it: weights are safetensors, or unpickled as plain tensors alone, and code of a model's own is
    never run. Raises ValueError when it cannot serve this corpus: no masked-LM head among its weights, another
    tokenizer or vocabulary, or fewer positions than a row has tokens.
    """
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True, weights_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a damaged or foreign file makes transformers, safetensors or torch raise
        raise unloadable("auxiliary", path, "masked LM", error) from error
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        raise ValueError(
            f"auxiliary = {path!r}: {len(absent)} weights of the masked LM are not in the checkpoint and would be "
            f"random ({', '.join(absent[:3])}); use a checkpoint saved with its masked-LM head (a generator, not a "
            "discriminator or bare encoder)"
        )
    refuse_other_vocabulary("auxiliary", path, model, tokenizer)
    if sequence_length > positions_available(model.config):
        raise ValueError(
            f"data.sequence_length = {sequence_length}: the auxiliary model {path!r} has "
            f"{positions_available(model.config)} positions; shorten the rows or take another auxiliary model"
        )
    return model.eval().requires_grad_(False)


def unloadable(setting: str, path: str, what: str, error: Exception) -> ValueError:
    """The error for a model, named by `setting`, that transformers does not load."""
    absent = "" if Path(path).exists() else "there is no such folder here, and as a name on the hub "
    return ValueError(
        f"{setting} = {path!r}: {absent}it is no {what} that transformers can load; name a folder written by "
        f"save_pretrained (runs/NAME/export) or a hub model. transformers says: {error}"
    )


def refuse_other_vocabulary(
    setting: str, path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise ValueError unless the model at `path`, named by `setting`, uses the corpus's tokenizer."""
    if model.config.vocab_size < len(tokenizer):
        raise ValueError(
            f"{setting} = {path!r} knows {model.config.vocab_size} tokens, the corpus uses {len(tokenizer)}; "
            "prepare the corpus with that model's own tokenizer (prepare_corpus.py --tokenizer)"
        )
    try:
        own = tokenizers.load(path)
    except (OSError, ValueError) as error:
        if Path(path).is_dir() and not (Path(path) / "tokenizer_config.json").exists():
            raise ValueError(
                f"{setting} = {path!r} has no tokenizer beside its weights, so that its vocabulary cannot be checked; "
                "save its tokenizer into that folder"
            ) from error
        raise
    if tokenizers.fingerprint(own) != tokenizers.fingerprint(tokenizer):
        differing = len(set(own.get_vocab().items()) ^ set(tokenizer.get_vocab().items()))
        raise ValueError(
            f"{setting} = {path!r} uses another tokenizer than the corpus ({differing} entries of the vocabulary "
            "differ, or its special tokens or normalisation do); prepare the corpus with that model's own "
            "tokenizer (prepare_corpus.py --tokenizer)"
        )


def _most_frequent(targets: Tensor) -> tuple[float, int]:
    """The share of the most frequent one among so many tokens."""
    counts = torch.bincount(targets.flatten())
    return int(counts.max()) / targets.numel(), targets.numel()


def _asked(batches: Batches, num_rows: int) -> Iterator[MaskedBatch]:
    """`num_rows` held-out rows, of all corpora, some at a time."""
    every = batches.num_held_out // num_rows
    for start in range(0, num_rows, ASKED_ROWS):
        yield batches.held_out(start * every, min(ASKED_ROWS, num_rows - start), every)


def to_be_beaten(batches: Batches, num_rows: int) -> dict[str, float]:
    """What the accuracy of a masked LM is to be seen beside, for a run's summary; of the rows that the gate asks.

    `most_frequent_share` is that of always naming the most frequent token, `gate_accuracy` what `gate` refuses still.
    """
    targets = [batch.input_ids.gather(1, batch.positions).flatten() for batch in _asked(batches, num_rows)]
    most_frequent, total = _most_frequent(torch.cat(targets))
    return {"most_frequent_share": most_frequent, "gate_accuracy": _least(most_frequent, total)}


def _least(most_frequent: float, total: int) -> float:
    """Two standard errors of a share measured on so many tokens above it."""
    return most_frequent + 2 * (most_frequent * (1 - most_frequent) / total) ** 0.5


def gate(path: str, accuracy: float, most_frequent: float, total: int) -> None:
    """Refuse an auxiliary model that predicts no better than always naming the most frequent token.

    The margin is two standard errors of the measured share. Raises ValueError.
    """
    if accuracy <= _least(most_frequent, total):
        raise ValueError(
            f"auxiliary = {path!r} predicts {accuracy:.1%} of {total} held-out masked tokens; always naming the most "
            f"frequent token would get {most_frequent:.1%}. A discriminator learns nothing from such samples: "
            "train the auxiliary model longer, take a better one, or pass --auxiliary_gate false to go on all the same"
        )


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights, by name, as they are loaded."""
    state = xxhash.xxh3_128()
    for name, weight in sorted(model.state_dict().items()):
        state.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        state.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()
