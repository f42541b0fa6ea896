"""A corpus: one flat stream of token ids on disk, read through the memory map, and where its documents begin.

The format is Megatron's indexed one, so corpora that exist are read as they are and ours can be read by others. A
folder made here also has a manifest and the tokenizer; what a run is given is then checked against what was written:
sizes and counts on opening (a millisecond), every byte by `verify` (3 GB/s).
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fast_electra.corpora import documentation
from fast_electra.corpora import tokenizer as tokenizers
from fast_electra.corpora.corpus_writer import PREFIX_NAME, Preparation, write_corpus
from fast_electra.corpora.documents import list_sources
from fast_electra.corpora.manifest import FILE_NAME, Manifest, hash_file
from fast_electra.corpora.megatron_index import Index, read_index
from fast_electra.corpora.tokenizer import TOKENIZER_FOLDER

_logger = logging.getLogger(__name__)
_BLOCK = 1 << 16  # tokens of a foreign corpus looked at in one place,
_PLACES = 256  # in so many places, evenly spread, on opening


def build(  # noqa: PLR0913 - a command line in Python: each argument is one thing a user says
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    vocab_size: int | None = None,
    kind: Literal["unigram", "bpe"] = "unigram",
    text_key: str = "text",
    workers: int | None = None,
    progress: bool = True,
) -> "Corpus":
    """Make a corpus of `inputs` (see documents.py; none: the built-in documentation) in the folder `output`.

    Tokens are those of `tokenizer`, or of one trained on the inputs, of `kind` and with `vocab_size` entries; behind
    each document stands [SEP]. `workers` processes tokenise (default: one for each core this process may use) and
    change nothing in the result. If `output` is the same build already, it is opened and nothing is done.

    Raises ValueError, FileNotFoundError, PermissionError for inputs that cannot be used, FileExistsError if `output`
    holds something else, OSError (ENOSPC) for a full disk; nothing half-written is left by these or by Ctrl-C.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers={workers}: at least one process has to tokenise")
    output = Path(output)
    with _or_documentation(inputs) as given:
        preparation = Preparation(list_sources(given), tokenizer, vocab_size, kind, text_key)
        if (output / FILE_NAME).is_file():
            if not Manifest.read(output).same_build(preparation.inputs, preparation.settings):
                raise FileExistsError(
                    f"{str(output)!r} holds a corpus of other inputs or settings (its {FILE_NAME} says which): choose "
                    "another output, or remove it first"
                )
            _logger.info("%s is this corpus already: nothing to do", output)
        else:
            write_corpus(preparation, output, workers=workers, progress=progress)
    return Corpus.open(output)


@contextmanager
def _or_documentation(inputs: Sequence[str | Path]) -> Iterator[Sequence[str | Path]]:
    if inputs:
        yield inputs
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield [documentation.write(folder)]


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus opened for reading; make it by `build` or `Corpus.open`."""

    path: Path  # the folder, or the prefix of a corpus made elsewhere
    tokens: NDArray[Any]  # (num_tokens,) memory map: the documents one after the other
    index: Index  # where its documents lie
    tokenizer_path: str  # folder or hub name
    tokenizer_fingerprint: str
    fingerprint: str  # identifies the stream of tokens and its documents
    manifest: Manifest | None  # None for a corpus made elsewhere

    @property
    def num_tokens(self) -> int:
        """Tokens in the stream, all documents together."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Documents with at least one token."""
        return self.index.num_documents

    @property
    def files(self) -> list[Path]:
        """What holds its tokens and its index."""
        prefix = self.path if self.manifest is None else self.path / PREFIX_NAME
        return [Path(f"{prefix}{ending}") for ending in (".bin", ".idx")]

    @cached_property
    def document_starts(self) -> NDArray[np.int64]:
        """The offset (num_documents,) of each document's first token: 8 bytes a document, from the first use on."""
        return self.index.document_starts()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer behind the ids, loaded on first use.

        Raises ValueError if it is not the one the corpus was made with.
        """
        tokenizer = tokenizers.load(self.tokenizer_path)
        if (found := tokenizers.fingerprint(tokenizer)) != self.tokenizer_fingerprint:
            raise ValueError(
                f"the tokenizer {self.tokenizer_path!r} (fingerprint {found}) is not the one {str(self.path)!r} was "
                f"made with ({self.tokenizer_fingerprint}): put that one back, or prepare the corpus again"
            )
        return tokenizer

    @classmethod
    def open(cls, path: str | Path, tokenizer: str | Path | None = None) -> "Corpus":
        """Open a folder made by `build`, or a Megatron corpus by its prefix or .bin path.

        A corpus made elsewhere needs a `tokenizer` (folder or hub name; default: a folder `tokenizer` beside it); its
        documents need not end in [SEP]. For one made here a `tokenizer` is only compared with its own.

        Raises FileNotFoundError or ValueError naming the file if something is missing, cut short, not of the size or
        count that is recorded, or if a token id is beyond the tokenizer (looked at in 256 places; `verify` reads all).
        """
        path = Path(path)
        if path.suffix in (".bin", ".idx") and not path.is_dir():
            path = path.with_suffix("")
        if path.name == PREFIX_NAME and (path.parent / FILE_NAME).is_file():
            path = path.parent
        return _open_own(path, tokenizer) if path.is_dir() else _open_foreign(path, tokenizer)

    def verify(self) -> None:
        """Read every byte and compare with the manifest, the tokenizer included.

        Raises ValueError naming the file and what is wrong with it. A corpus made elsewhere has no manifest: there
        every token id is compared with the size of the vocabulary.
        """
        vocab_size = len(self.tokenizer)  # compares the tokenizer as well
        if self.manifest is None:
            _look_at_ids(self.path, self.tokens, vocab_size, places=-(-self.num_tokens // _BLOCK))
            return
        for record in self.manifest.files:
            if (found := hash_file(self.path / record.name)) != record.xxh3_128:
                raise ValueError(
                    f"{str(self.path / record.name)!r} is damaged: its bytes have changed (xxh3 {found}, expected "
                    f"{record.xxh3_128}). Fetch it again, or remove the folder and prepare the corpus again"
                )


def _open_own(folder: Path, tokenizer: str | Path | None) -> Corpus:
    manifest = Manifest.read(folder)
    index = read_index(folder / PREFIX_NAME)
    if not index.num_tokens:
        raise ValueError(f"the corpus {str(folder)!r} has no tokens: prepare it again")
    recorded = {record.name: record.size_bytes for record in manifest.files}
    found = {name: (folder / name).stat().st_size for name in (f"{PREFIX_NAME}.bin", f"{PREFIX_NAME}.idx")}
    counts = {"tokens": index.num_tokens, "documents": index.num_documents, "dtype": index.dtype.name}
    expected = {name: getattr(manifest, name) for name in counts}
    if (found, counts) != (recorded, expected):
        raise ValueError(
            f"the files of {str(folder)!r} are not those of its {FILE_NAME}: {found | counts} found, "
            f"{recorded | expected} recorded. Fetch the folder again, or prepare the corpus again"
        )
    corpus = Corpus(
        path=folder,
        tokens=np.memmap(folder / f"{PREFIX_NAME}.bin", dtype=index.dtype, mode="r"),
        index=index,
        tokenizer_path=str(folder / TOKENIZER_FOLDER),
        tokenizer_fingerprint=manifest.tokenizer_fingerprint,
        fingerprint=manifest.fingerprint,
        manifest=manifest,
    )
    if tokenizer is not None and tokenizers.fingerprint(tokenizers.load(tokenizer)) != corpus.tokenizer_fingerprint:
        raise ValueError(
            f"the tokenizer {str(tokenizer)!r} is not the one {str(folder)!r} was made with: leave it out (the corpus "
            "brings its own), or prepare the corpus with it"
        )
    return corpus


def _open_foreign(prefix: Path, tokenizer: str | Path | None) -> Corpus:
    if not any(Path(f"{prefix}{ending}").is_file() for ending in (".bin", ".idx")):
        raise FileNotFoundError(
            f"there is no corpus {str(prefix)!r}: no such folder, and no {prefix.name}.bin with {prefix.name}.idx. "
            f"Make one with `python launchers/prepare_corpus.py --input TEXT --output {prefix}`, or mend the path"
        )
    index = read_index(prefix)
    if not index.num_tokens:
        raise ValueError(f"the corpus {str(prefix)!r} has no tokens: give one that has")
    beside = prefix.parent / TOKENIZER_FOLDER
    if tokenizer is None and not beside.is_dir():
        raise ValueError(
            f"the corpus {str(prefix)!r} was made elsewhere and names no tokenizer: give the one it was made with, or "
            f"put its folder beside it as {str(beside)!r}"
        )
    name = str(tokenizer or beside)
    loaded = tokenizers.load(name)
    tokens = np.memmap(f"{prefix}.bin", dtype=index.dtype, mode="r")
    seen = _look_at_ids(prefix, tokens, len(loaded), places=_PLACES)
    return Corpus(
        path=prefix,
        tokens=tokens,
        index=index,
        tokenizer_path=name,
        tokenizer_fingerprint=tokenizers.fingerprint(loaded),
        fingerprint=xxhash.xxh3_128_hexdigest(f"{hash_file(Path(f'{prefix}.idx'))} {seen}".encode()),
        manifest=None,
    )


def _look_at_ids(path: Path, tokens: NDArray[Any], vocab_size: int, places: int) -> str:
    """Refuse ids outside of the vocabulary; returns a hash of the tokens looked at."""
    state = xxhash.xxh3_128()
    for start in np.unique(np.linspace(0, max(0, len(tokens) - _BLOCK), places).astype(np.int64)):
        block = np.asarray(tokens[start : start + _BLOCK])
        state.update(block.tobytes())
        require_known_ids(block, vocab_size, path, f"near token {start:,}")
    return state.hexdigest()


def require_known_ids(ids: NDArray[Any], vocab_size: int, path: Path, place: str) -> None:
    """Raise ValueError naming the corpus if one of its ids lies outside of the vocabulary."""
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocab_size:
        raise ValueError(
            f"the corpus {str(path)!r} has the token id {lowest if lowest < 0 else highest} {place}, its tokenizer "
            f"{vocab_size} entries: give the tokenizer it was made with, or, if it is damaged, fetch it again"
        )
