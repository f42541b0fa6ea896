"""Replacement paths on disk: a folder of shards under a manifest, written once, read by any number of processes.

A *row key* is draw * num_rows + row: the mask of a row is drawn anew for every draw. A shard holds the row keys [i *
rows_per_shard, (i + 1) * rows_per_shard) and depends on nothing else, so that whoever builds it, in whatever order,
writes the same bytes (replacement_shard.py). It is written beside its name and renamed when complete: a build killed at
any moment goes on with the shards that are not there. `building.json` says for what they are; `manifest.json` takes its
place when all are there and their hashes agree. Reading a row costs one offset and one contiguous span of a memory map.
256 rows of 77 positions, spread over 200 shards, took 1.1 ms on one core.

There are at most 512 shards (or shards of 256 rows): a kill loses little, and a process can keep all maps open within
the usual 1,024 file descriptors. A shard is hashed before its first row is used: by the first process for all of them
at the start of a run (`data.verify`), or else once by each process.
"""

import json
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import xxhash
from numpy.typing import ArrayLike

from fast_electra.files import json_file, random_reads
from fast_electra.replacements.replacement_codec import Ints, RowCodec
from fast_electra.replacements.replacement_paths import Paths, TemperatureGrid
from fast_electra.replacements.replacement_shard import DIGEST_BYTES, Shard, shard_path

FORMAT = 1
_REMEDY = "Delete it and run the precomputation again"
# What it means that a hash differs. The masked positions follow from the other values named, and from the code.
_VALUES = ("mask_rate", "sequence_length", "seed", "separate_documents")
_MASKED_BY = ("corpus", "tokenizer", *_VALUES)
_IN_WORDS = {
    "corpus": "another corpus, or several in another order or number",
    "tokenizer": "another vocabulary",
    "auxiliary": "another auxiliary model, or other weights of it",
    "masking": "other positions are masked",
    "mask_rate": "data.mask_rate",
    "sequence_length": "data.sequence_length",
    "seed": "the seed of masks and samples",
    "num_rows": "rows of the corpus, which its length and data.sequence_length make",
    "separate_documents": "data.separate_documents",
}


@dataclass(frozen=True)
class Provenance:
    """What replacement paths are of: all that their tokens depend on, and the shape of the shards.

    `corpus`, `tokenizer`, `auxiliary` and `masking` are fingerprints: of the data, the vocabulary, the weights, and of
    the masked positions of some rows (so that a change in how they are drawn is noticed).
    """

    corpus: str
    tokenizer: str
    auxiliary: str
    masking: str
    mask_rate: float
    sequence_length: int
    masked_per_row: int
    vocab_size: int
    seed: int
    grid: TemperatureGrid
    num_rows: int
    num_draws: int
    rows_per_shard: int
    separate_documents: bool = False
    format: int = FORMAT

    @property
    def num_keys(self) -> int:
        return self.num_rows * self.num_draws

    @property
    def num_shards(self) -> int:
        return -(-self.num_keys // self.rows_per_shard)

    @property
    def codec(self) -> RowCodec:
        return RowCodec(self.masked_per_row, self.vocab_size, self.grid.num_levels)

    def shard_keys(self, shard: int) -> range:
        return range(shard * self.rows_per_shard, min((shard + 1) * self.rows_per_shard, self.num_keys))


def default_rows_per_shard(num_keys: int) -> int:
    """At most 512 shards, so that all can be mapped at once, of at least 256 rows."""
    return max(256, -(-num_keys // 512))


def begin(folder: Path, provenance: Provenance) -> list[int]:
    """Makes or enters a folder; returns the shards still to be written. Any process may call it, at any time.

    Raises ValueError if the folder holds paths of anything else, naming each difference.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("manifest.json", "building.json"):
        if (folder / name).exists():
            _, found = _read_manifest(folder / name)
            _refuse_differences(folder, found, asdict(provenance), "choose another folder or delete this one")
            break
    else:
        _write_json(folder / "building.json", {"provenance": asdict(provenance)})
    return [shard for shard in range(provenance.num_shards) if not shard_path(folder, shard).exists()]


def write_shard(folder: Path, provenance: Provenance, shard: int, batches: Iterable[Paths]) -> None:
    """Writes one shard from the paths of its rows, in order, in batches of whole rows; visible only when complete.

    Raises ValueError if the batches do not hold the rows of the shard.
    """
    encoded = [provenance.codec.encode(paths) for paths in batches]
    sizes = np.concatenate([np.zeros(0, dtype=np.int64), *(sizes for _, sizes in encoded)])
    if len(sizes) != len(provenance.shard_keys(shard)):
        raise ValueError(f"{len(sizes)} rows for shard {shard}, which has {len(provenance.shard_keys(shard))}")
    offsets = np.concatenate([[0], sizes.cumsum()]) + 4 * (len(sizes) + 1)
    if offsets[-1] >= 2**32:
        raise ValueError(f"shard {shard} has {offsets[-1]} bytes, its offsets 32 bits: lower rows_per_shard")
    content = b"".join([offsets.astype("<u4").tobytes(), *(rows.tobytes() for rows, _ in encoded)])
    _write_beside(shard_path(folder, shard), content + xxhash.xxh3_64_digest(content))


def finish(folder: Path, provenance: Provenance) -> dict[str, Any]:
    """Checks every shard, sums up and writes the manifest, which it returns; one process calls it, after all are done.

    Raises FileNotFoundError if shards are missing, ValueError if one is damaged.
    """
    missing = begin(folder, provenance)
    if missing:
        raise FileNotFoundError(f"{folder}: shards {missing} are missing: run the same command again")
    digests, num_bytes = [], 0
    histogram = np.zeros(1, dtype=np.int64)
    for shard in range(provenance.num_shards):
        content = Shard.read(shard_path(folder, shard), len(provenance.shard_keys(shard)))
        entries = np.bincount(provenance.codec.counts(content.data, content.offsets[:-1].astype(np.int64)).ravel())
        size = max(len(histogram), len(entries))
        histogram = np.pad(histogram, (0, size - len(histogram))) + np.pad(entries, (0, size - len(entries)))
        digests.append(content.digest)
        num_bytes += len(content.data) + DIGEST_BYTES
    manifest = {
        "provenance": asdict(provenance),
        "bytes_per_token": num_bytes / (provenance.num_keys * provenance.sequence_length),
        "bytes_per_masked_position": num_bytes / (provenance.num_keys * provenance.masked_per_row),
        "positions_by_entries": histogram.tolist(),
        "shards": digests,
    }
    _write_json(folder / "manifest.json", manifest)
    for leftover in (folder / "building.json", *folder.glob(".partial-*")):
        leftover.unlink(missing_ok=True)
    return manifest


class ReplacementStore:
    """Replacement paths to read: `tokens_at` gives the tokens of any rows at any temperature.

    `expect` names fields of Provenance and the values they must have (corpus, tokenizer, seed, ...). Of a store that
    is `verified`, by another process say, a shard's recorded hash alone is looked at when it is first read. Raises
    FileNotFoundError for a folder that is none or not finished, ValueError for one of other paths or another format.
    """

    def __init__(self, folder: Path, verified: bool = False, **expect: object) -> None:
        if not (folder / "manifest.json").exists():
            state = "is not finished" if (folder / "building.json").exists() else "holds no replacement paths"
            raise FileNotFoundError(f"{folder} {state}: run precompute_replacements.py with this folder as its output")
        self.folder, self._verified = folder, verified
        self.manifest, found = _read_manifest(folder / "manifest.json")
        wanted = {"format": FORMAT, **expect}
        _refuse_differences(folder, found, wanted, "precompute paths for this run or change the run")
        self.provenance = _provenance(folder / "manifest.json", self.manifest)
        self._shards: dict[int, Shard] = {}
        self._opening = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """Identifies the paths: a hash over what they are of and over the hashes of their shards."""
        return xxhash.xxh3_128_hexdigest(json.dumps([asdict(self.provenance), self.manifest["shards"]]).encode())

    def tokens_at(self, row_keys: ArrayLike, temperature: float) -> Ints:
        """The replacements (B, N), int64, of the masked positions of rows (B,) at a temperature, snapped to the grid.

        Raises ValueError for a row key or a temperature that the paths do not cover, and for a damaged shard.
        """
        level = self.provenance.grid.level(temperature)
        keys = np.asarray(row_keys, dtype=np.int64)
        spans = [self._shard(s).row(r) for s, r in self._places(keys)]
        sizes = np.array([len(span) for span in spans], dtype=np.int64)
        data = np.frombuffer(b"".join(spans), dtype=np.uint8)
        return self.provenance.codec.tokens_at(data, sizes.cumsum() - sizes, self.provenance.seed, keys, level)

    @property
    def files(self) -> list[Path]:
        """Its shards."""
        return [shard_path(self.folder, shard) for shard in range(self.provenance.num_shards)]

    def foresee(self, row_keys: ArrayLike) -> None:
        """Have these rows (B,) fetched before `tokens_at` is asked, on any thread; raises what that raises for them."""
        places = [(self._shard(shard), row) for shard, row in self._places(np.asarray(row_keys, dtype=np.int64))]
        for shard, row in places:  # all of these first: the second loop waits for them
            random_reads.foresee(shard.offsets, [row], [row + 2])
        for shard, row in places:
            random_reads.foresee(shard.data, *shard.offsets[row : row + 2, None])

    def verify(self) -> None:
        """Hashes every shard; raises ValueError naming all that are damaged or missing."""
        problems = []
        for shard in range(self.provenance.num_shards):
            try:
                self._open(shard)
            except (ValueError, FileNotFoundError) as problem:
                problems.append(str(problem))
        if problems:
            raise ValueError("\n".join(problems))

    def _places(self, keys: Ints) -> list[tuple[int, int]]:
        if (outside := keys[(keys < 0) | (keys >= self.provenance.num_keys)]).size:
            raise ValueError(
                f"row key {outside[0]}: {self.folder} holds {self.provenance.num_draws} draws of "
                f"{self.provenance.num_rows} rows: precompute more draws or train for fewer epochs"
            )
        shards, rows = np.divmod(keys, self.provenance.rows_per_shard)
        return list(zip(shards.tolist(), rows.tolist(), strict=True))

    def _shard(self, shard: int) -> Shard:
        with self._opening:  # of several threads one hashes it
            if shard not in self._shards:
                self._shards[shard] = self._open(shard)
            return self._shards[shard]

    def _open(self, shard: int) -> Shard:
        path = shard_path(self.folder, shard)
        content = Shard.read(path, len(self.provenance.shard_keys(shard)), hashed=not self._verified)
        if content.digest != self.manifest["shards"][shard]:
            raise ValueError(
                f"{path} has hash {content.digest} where the manifest says {self.manifest['shards'][shard]}: "
                "it belongs to other paths; delete it and run the precomputation again"
            )
        return content


def _refuse_differences(folder: Path, found: dict[str, Any], wanted: dict[str, Any], remedy: str) -> None:
    wanted = json.loads(json.dumps(wanted))
    other = {name: value for name, value in wanted.items() if found.get(name) != value}
    if other:
        differences = [f"{name} is {found.get(name)!s:.100}, not {value}" for name, value in other.items()]
        lines = [f"the replacement paths in {folder} are others: {'; '.join(differences)}: {remedy}"]
        by = [name for name in _MASKED_BY if name in other]
        for name in (each for each in other if each in _IN_WORDS):
            lines.append(f"{name}: {_IN_WORDS[name]}")
            if name == "masking":
                lines[-1] += f" because of {', '.join(by)}" if by else ", which another version of the code would do"
        same = [f"{name} {wanted[name]}" for name in _VALUES if name in wanted and name not in other]
        lines += [f"the same are {', '.join(same)}"] if same else []
        raise ValueError("\n  ".join(lines))


def _read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest, or what stands in its place while it is built, and the provenance in it, of any format."""
    content = json_file.read(path, _REMEDY)
    provenance = content.get("provenance")
    if not isinstance(provenance, dict) or "format" not in provenance:
        raise ValueError(f"{str(path)!r} is broken: it does not say what its replacement paths are of. {_REMEDY}")
    content["provenance"] = {"separate_documents": False} | provenance  # as it was before there was a choice
    return content, content["provenance"]


def _provenance(path: Path, manifest: dict[str, Any]) -> Provenance:
    """The provenance of a finished manifest, of this format, in which everything fits together."""
    with json_file.named(path, _REMEDY):
        provenance: Provenance = json_file.typed(manifest["provenance"], Provenance, "provenance")
        digests = json_file.typed(manifest.get("shards"), list[str], "shards")
        json_file.typed(manifest.get("bytes_per_token"), float, "bytes_per_token")
        for name in ("sequence_length", "masked_per_row", "vocab_size", "num_rows", "num_draws", "rows_per_shard"):
            json_file.require(getattr(provenance, name) > 0, f"{name} is 0")
        json_file.require(provenance.grid.first <= provenance.grid.last, f"grid is {provenance.grid}, which is empty")
        json_file.require(len(digests) == provenance.num_shards, f"it names {len(digests)} shards")
    return provenance


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write_beside(path, (json.dumps(json_file.sealed(content), indent=1) + "\n").encode())


def _write_beside(path: Path, content: bytes) -> None:
    """The file is there whole or not at all, also after a power cut; what a kill leaves is swept up by `finish`."""
    partial = path.with_name(f".partial-{uuid4().hex}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
