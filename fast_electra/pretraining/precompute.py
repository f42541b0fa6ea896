"""Replacement paths of a corpus, computed by any number of processes: the auxiliary model sees each row once, for ever.

Every process takes shards in turn and computes them in batches of a fixed number of rows from the shard's first, so
that a shard's bytes depend neither on the number of processes nor on what was done before a kill. (On a CPU a row's
bf16 logits were the same to the bit in batches of 3, 8 and 16 rows, in another order, and on 1 or 2 threads; a GPU
promises it for equal shapes only, which these are. Another kind of device may round otherwise: build on one kind.)
"""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fast_electra.batching.batches import Batches
from fast_electra.engine import parallel
from fast_electra.methods.replay import identity
from fast_electra.models.auxiliary import ASKED_ROWS, Auxiliary, weights_fingerprint
from fast_electra.pretraining import choices, setup_run
from fast_electra.replacements import replacement_store
from fast_electra.replacements.gumbel import NoiseKeys
from fast_electra.replacements.replacement_paths import Paths, TemperatureGrid, replacement_paths
from fast_electra.replacements.replacement_store import Provenance
from fast_electra.runs import failure, run_state
from fast_electra.runs.watchdog import LONG, Watchdog, patience_minutes
from fast_electra.settings.config import Config
from fast_electra.settings.require import require

BATCH_ROWS = ASKED_ROWS
# More than any auxiliary model's paths took (replacement_codec.py), for the check of the disk.
_BYTES_PER_POSITION = 10
_OURS = ("manifest.json", "building.json", run_state.VERIFIED, run_state.NAME, "shard-*.bin", ".partial-*")


@dataclass(frozen=True)
class Precomputation:
    """The auxiliary model, the rows, and what their paths are of."""

    auxiliary: Auxiliary
    batches: Batches
    provenance: Provenance

    def paths(self, row_keys: range) -> Paths:
        """The paths of whole rows, row after row."""
        keys = np.asarray(row_keys, dtype=np.int64)
        batch = self.batches.masked(keys).to(parallel.device())
        num_masked = self.provenance.masked_per_row
        parts = []
        for rows, logits in self.auxiliary.logits(batch):
            owners = np.repeat(keys[rows], num_masked)
            noise = NoiseKeys(self.provenance.seed, owners, np.tile(np.arange(num_masked), len(keys[rows])))
            parts.append(replacement_paths(logits.flatten(0, 1), noise, self.provenance.grid))
        return Paths(*(torch.cat(fields) for fields in zip(*parts, strict=True)))

    def shard(self, shard: int) -> Iterator[Paths]:
        """The paths of a shard's rows in batches."""
        keys = self.provenance.shard_keys(shard)
        yield from (self.paths(keys[start : start + BATCH_ROWS]) for start in range(0, len(keys), BATCH_ROWS))


def with_draws(config: Config, draws: int | None) -> Config:
    """The config with as many draws as are asked for: `draws`, else what its data settings say, else one.

    Raises ValueError where both say a number, and not the same.
    """
    named = config.data.num_draws
    require(draws is None or named in (0, draws), "data.num_draws", named, f"--draws is {draws}; leave one of them out")
    chosen = (named or 1) if draws is None else draws
    return replace(config, data=replace(config.data, num_draws=chosen))


def precompute(config: Config, t_min: float, t_max: float, max_levels: int = 2**16) -> dict[str, Any]:
    """Make the folder `config.output` of paths for `config.data.num_draws` draws of the corpora's rows.

    All processes take part; a folder that an earlier start of the same command left is gone on with, and the manifest
    is returned. Raises ValueError for input that does not fit together, a full disk, a folder of other things or one
    in which another process works, before anything is computed; OSError when a shard cannot be written, which loses
    that one alone; Preempted, the shards at hand being complete, when any process was told to stop.
    """
    require(config.data.num_draws >= 1, "data.num_draws", config.data.num_draws, "give --draws of at least 1")
    require(bool(config.auxiliary), "auxiliary", config.auxiliary, "name the masked LM whose samples are to be stored")
    require(bool(config.corpus), "corpus", config.corpus, "name a folder that prepare_corpus.py made")
    grid = TemperatureGrid.covering(t_min, t_max, max_levels)
    remedy = "held-out rows are sampled at T = 1 in every run; let the range from --t_min to --t_max hold 1"
    require(grid.t_min <= 1 <= grid.t_max, "temperatures", (t_min, t_max), remedy)
    watchdog = Watchdog(config.run.hang_minutes)
    try:
        watchdog.begin("joining the other processes")
        parallel.start(patience_minutes(config.run.hang_minutes))
        config = choices.decided(config)
        if config.auxiliary_engine == "auto":  # the faster is a matter of the moment, and shards would differ by it
            config = replace(config, auxiliary_engine="plain")
        setup_run.on_rank_zero(lambda: _take(Path(config.output)))
        watchdog.folder = config.output
        with failure.noted(config.output, failure.PRECOMPUTING):
            manifest = _precompute(config, grid, watchdog)
    finally:
        watchdog.stop()
    if parallel.rank() == 0:
        run_state.end(config.output, run_state.FINISHED)
    return manifest


def _precompute(config: Config, grid: TemperatureGrid, watchdog: Watchdog) -> dict[str, Any]:
    """The same in a folder that is this start's."""
    folder = Path(config.output)
    watchdog.begin("reading the corpora and the auxiliary model", LONG)
    batches = setup_run.open_batches(config)
    tokenizer = batches.corpora[0].tokenizer
    frozen, model, _ = setup_run.open_auxiliary(config, tokenizer, batches)
    work = Precomputation(frozen, batches, provenance_of(batches, weights_fingerprint(model), grid))
    missing: list[int] = []
    setup_run.on_rank_zero(lambda: missing.extend(_begin(folder, work.provenance)))
    _build(folder, work, parallel.from_rank_zero(missing), watchdog)
    watchdog.begin("checking the shards", LONG)
    manifest: dict[str, Any] = {}
    setup_run.on_rank_zero(lambda: manifest.update(replacement_store.finish(folder, work.provenance)))
    return manifest


def provenance_of(batches: Batches, auxiliary: str, grid: TemperatureGrid) -> Provenance:
    draws = batches.data.num_draws
    return Provenance(
        **identity(batches),
        auxiliary=auxiliary,
        grid=grid,
        num_draws=draws,
        rows_per_shard=replacement_store.default_rows_per_shard(batches.num_rows * draws),
    )


def _take(folder: Path) -> None:
    """Refuse a folder with anything but replacement paths in it (a corpus, say) or with another process at work."""
    foreign = [path.name for path in folder.glob("*") if not any(path.match(name) for name in _OURS)]
    require(not foreign, "output", str(folder), f"it holds other things ({', '.join(foreign[:3])}); name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    run_state.take(str(folder))


def _begin(folder: Path, provenance: Provenance) -> list[int]:
    """The shards still to be made, if the disk has room for them."""
    missing = replacement_store.begin(folder, provenance)
    num_rows = sum(len(provenance.shard_keys(shard)) for shard in missing)
    needed, free = num_rows * provenance.masked_per_row * _BYTES_PER_POSITION, shutil.disk_usage(folder).free
    require(
        free >= needed,
        "output",
        str(folder),
        f"the paths may take {needed / 2**30:.2f} GiB, the disk has {free / 2**30:.2f} GiB free; make room, name "
        "another folder, or lower --draws",
    )
    return missing


def _build(folder: Path, work: Precomputation, missing: list[int], watchdog: Watchdog) -> None:
    """This process's share of the missing shards, a round of one shard a process at a time.

    The rounds keep processes together, so that no slow one is waited for longer than a group of processes may wait.
    """
    sizes = {shard: len(work.provenance.shard_keys(shard)) for shard in missing}
    done = work.provenance.num_keys - sum(sizes.values())
    bar = tqdm(
        total=work.provenance.num_keys,
        initial=done,
        desc="replacement paths",
        unit="row",
        disable=parallel.rank() != 0,
        dynamic_ncols=True,
        mininterval=1.0 if sys.stderr.isatty() else 30.0,
    )
    for first in range(0, len(missing), parallel.world_size()):
        turn = missing[first : first + parallel.world_size()]
        if parallel.rank() < len(turn):
            mine = turn[parallel.rank()]
            batches = _counted(work.shard(mine), bar, len(turn), watchdog)
            replacement_store.write_shard(folder, work.provenance, mine, batches)
        watchdog.begin("waiting for the other processes' shards", LONG)
        setup_run.stop_if_preempted()
        done += sum(sizes[shard] for shard in turn)
        bar.update(done - bar.n)
    bar.close()


def _counted(batches: Iterator[Paths], bar: Any, num_processes: int, watchdog: Watchdog) -> Iterator[Paths]:
    """The batches as they come, watched; the bar takes it that the other processes are as far as this one."""
    watchdog.begin("computing replacement paths")
    for batch in batches:
        yield batch
        watchdog.begin("computing replacement paths")
        bar.update(BATCH_ROWS * num_processes)
