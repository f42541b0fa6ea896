"""The method without its auxiliary model: replacements are read from stored paths, at the temperature of the moment.

The samples are those that the auxiliary model would give with the same Gumbel noise (replacement_paths.py), so that one
folder of paths serves any schedule within its temperatures, any number of runs and of processes. What a run gives up
is fresh masks for ever: rows come round with the masks that are stored, one draw for each pass, in turn.

Paths of anything else than the run's own rows would be noise in silence, so that a start is refused unless corpus,
tokenizer, masks and seed are those the paths were made for. Shapes: B rows, N masked positions a row.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from fast_electra.batching.batches import Batches, MaskedBatch
from fast_electra.methods.objectives import Frozen
from fast_electra.methods.temperature import temperature
from fast_electra.replacements.replacement_store import ReplacementStore
from fast_electra.settings.config import Config, DataConfig, TemperatureConfig
from fast_electra.settings.require import require

_MASKS_COMPARED = 64


def identity(batches: Batches) -> dict[str, Any]:
    """What replacement paths share with every run that may replay them, under the names of `Provenance`.

    Several corpora are one sequence of rows, in the order given, whatever their weights. Of the masks, those of some
    rows of two draws are compared, spread over all corpora.
    """
    opened, data = batches.corpora, batches.data
    prints = [corpus.fingerprint for corpus in opened]
    rows = np.linspace(0, batches.num_rows - 1, _MASKS_COMPARED).astype(np.int64)
    keys = rows + batches.num_rows * (np.arange(_MASKS_COMPARED) % 2)
    positions = batches.masked(keys).positions.numpy()
    return {
        "corpus": prints[0] if len(prints) == 1 else xxhash.xxh3_128_hexdigest(" ".join(prints).encode()),
        "tokenizer": opened[0].tokenizer_fingerprint,
        "masking": xxhash.xxh3_128_hexdigest(positions.astype("<i8").tobytes()),
        "mask_rate": data.mask_rate,
        "sequence_length": data.sequence_length,
        "masked_per_row": data.num_masked,
        "vocab_size": len(opened[0].tokenizer),
        "seed": batches.seed,
        "num_rows": batches.num_rows,
        "separate_documents": data.separate_documents,
    }


def with_stored_draws(data: DataConfig, folder: Path) -> DataConfig:
    """The data settings of a run that replays the paths in `folder`: as many draws as are stored, unless it names less.

    Raises ValueError for more draws than are stored, and what `ReplacementStore` raises.
    """
    stored = ReplacementStore(folder).provenance.num_draws
    remedy = f"{folder} holds {stored} draws a row; precompute more (--draws), or leave it out to use those"
    require(data.num_draws <= stored, "data.num_draws", data.num_draws, remedy)
    return replace(data, num_draws=data.num_draws or stored)


def open_store(config: Config, batches: Batches, verified: bool = False) -> ReplacementStore:
    """The run's replacement paths, checked against all that their tokens depend on and that the run has.

    Their bytes are hashed as they are first read, unless they are `verified`.

    Raises ValueError, naming every difference or the temperature that is not covered; FileNotFoundError for a folder
    that holds no finished paths.
    """
    store = ReplacementStore(Path(config.replacements), verified, **identity(batches))
    last = (config.run.steps - 1) / config.run.steps
    # Every schedule runs one way, so that its ends tell its range; held-out rows are sampled at 1.
    for value in (temperature(config.temperature, 0.0), temperature(config.temperature, last), 1.0):
        store.provenance.grid.level(value)
    return store


class Stored:
    """Samples that were computed before: the sampler that asks no model."""

    def __init__(self, store: ReplacementStore, pad_id: int) -> None:
        self.store, self.pad_id = store, pad_id

    def sample(self, batch: MaskedBatch, temperature: float) -> Tensor:
        """A token (B, N) for each masked position, at the stored temperature nearest to the one asked for."""
        tokens = torch.from_numpy(self.store.tokens_at(batch.rows.numpy(), temperature))
        device = batch.input_ids.device
        # From pageable memory the copy of a larger batch would wait for the device.
        return (tokens.pin_memory() if device.type == "cuda" else tokens).to(device, non_blocking=True)


class Replay(Frozen):
    """Replaced-token detection on stored samples; what is logged is the temperature they were really taken at."""

    def __init__(self, store: ReplacementStore, pad_id: int, schedule: TemperatureConfig, masked_share: float) -> None:
        super().__init__(Stored(store, pad_id), schedule, masked_share)
        self.store, self.grid = store, store.provenance.grid

    def foresee(self, batch: MaskedBatch) -> None:
        """Have what is stored of the batch's rows fetched before they are asked for."""
        self.store.foresee(batch.rows.numpy())

    def progress(self, u: float) -> dict[str, float]:
        """The temperature, snapped to the grid of the paths."""
        asked = super().progress(u)
        return {name: self.grid.temperature(self.grid.level(value)) for name, value in asked.items()}


def facts(store: ReplacementStore) -> dict[str, Any]:
    """What the summary of a run says of its paths."""
    grid = store.provenance.grid
    return {
        "replacements": str(store.folder),
        "replacement_paths": store.fingerprint,
        "replacement_draws": store.provenance.num_draws,
        "replacement_temperatures": [grid.t_min, grid.t_max],
        "replacement_bytes_per_token": store.manifest["bytes_per_token"],
    }
