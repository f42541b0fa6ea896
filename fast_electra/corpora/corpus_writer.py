"""Documents to a corpus on disk: a tokenizer, Megatron's .bin and .idx, a manifest, all of it or nothing.

The inputs are read once to train a tokenizer (none is given) and once to tokenise, never held: what grows with the
input is 12 bytes a document for the index, and at the very end 40 more while megatron-core writes it.
"""

import logging
import platform
import sys
import time
import warnings
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from fast_electra.corpora import tokenizer as tokenizers
from fast_electra.corpora.documents import MAX_CHARACTERS, Tally, read_documents
from fast_electra.corpora.hub import PREFIX, identify
from fast_electra.corpora.manifest import FORMAT, FileRecord, Manifest, library_versions
from fast_electra.corpora.megatron_index import narrowest_dtype
from fast_electra.corpora.tokenization import Tokenized, tokenize
from fast_electra.corpora.tokenizer import TOKENIZER_FOLDER
from fast_electra.files.compression import SUFFIXES
from fast_electra.files.staging import staged

PREFIX_NAME = "corpus"

_logger = logging.getLogger(__name__)
# For the disk space looked for beforehand: how much text a stored byte is, and how many tokens a byte of text.
_UNPACKED = 4.0
_TOKENS_PER_BYTE = 0.4
_LIBRARIES = ("fast_electra", "tokenizers", "transformers", "sentencepiece", "megatron-core", "numpy")


@dataclass(frozen=True)
class Preparation:
    """What decides the tokens of a corpus: the inputs and what is done to them."""

    sources: list[str]  # files and data sets, see documents.py
    tokenizer: PreTrainedTokenizerBase | None  # None: one is trained on the sources
    vocab_size: int | None  # of the trained one
    kind: Literal["unigram", "bpe"]
    text_key: str
    inputs: list[FileRecord] = field(init=False)

    def __post_init__(self) -> None:
        if self.tokenizer is None and self.vocab_size is None:
            raise ValueError(
                "neither tokenizer nor vocab_size is given: name a tokenizer, or say how large to train one"
            )
        if self.tokenizer is not None:
            tokenizers.require_special_tokens(self.tokenizer)
            if self.vocab_size not in (None, len(self.tokenizer)):
                raise ValueError(
                    f"vocab_size={self.vocab_size} but the given tokenizer has {len(self.tokenizer)} entries: leave "
                    "vocab_size out, or the tokenizer, to train one of that size"
                )
        object.__setattr__(self, "inputs", [_record(source) for source in self.sources])

    @property
    def settings(self) -> dict[str, str]:
        """What, beside the contents of the inputs, decides the tokens; as text, for the manifest."""
        common = {"text_key": self.text_key, "longest_document": f"{MAX_CHARACTERS} characters"}
        if self.tokenizer is not None:
            return common | {"tokenizer": f"given, {tokenizers.fingerprint(self.tokenizer)}"}
        sample = f"{tokenizers.SAMPLE_CHARACTERS} characters"
        return common | {"tokenizer": f"trained, {self.kind}, {self.vocab_size}", "tokenizer_sample": sample}

    def estimate_bytes(self) -> int:
        """About how much disk the corpus takes; what a data set of `datasets` takes is not known and left out."""
        packed = (*SUFFIXES, ".parquet")
        text = sum(one.size_bytes * (_UNPACKED if one.name.lower().endswith(packed) else 1.0) for one in self.inputs)
        vocab_size = len(self.tokenizer) if self.tokenizer is not None else self.vocab_size
        return int(text * _TOKENS_PER_BYTE * narrowest_dtype(vocab_size or 0).itemsize)

    def read(self, tally: Tally, title: str, progress: bool) -> Iterator[str]:
        """All documents, with a progress bar in bytes of the inputs as they are stored."""
        total = sum(one.size_bytes for one in self.inputs) if all(one.size_bytes for one in self.inputs) else None
        every = 0.1 if sys.stderr.isatty() else 10.0
        shown = {"unit": "B", "unit_scale": True, "mininterval": every, "disable": not progress}
        with tqdm(total=total, desc=title, **shown) as bar:
            for source in self.sources:
                for document in read_documents(source, key=self.text_key, tally=tally):
                    yield document
                    bar.update(tally.stored_bytes - bar.n)
            bar.update(tally.stored_bytes - bar.n)


def write_corpus(preparation: Preparation, output: Path, *, workers: int, progress: bool) -> None:
    """Make the corpus folder `output`: corpus.bin, corpus.idx, manifest.json and tokenizer/.

    The bytes of corpus.bin and corpus.idx depend on the preparation alone, not on `workers`. Raises what `staged`,
    `read_documents` and `tokenizer.train` raise, and ValueError if no input holds any text.
    """
    with staged(output, preparation.estimate_bytes()) as folder:
        tokenizer = _save_tokenizer(preparation, folder / TOKENIZER_FOLDER, progress)
        tally = Tally()
        builder = _builder(folder, narrowest_dtype(len(tokenizer)))
        start = time.perf_counter()
        documents = preparation.read(tally, "tokenising", progress)
        counts = _write_tokens(documents, tokenizer, folder, builder, workers)
        if not counts.documents:
            raise ValueError(
                f"no document with text in {[one.name for one in preparation.inputs]} ({tally.empty_documents:,} empty "
                "ones): check the inputs, and for JSON lines and Parquet the --text_key"
            )
        Manifest(
            format=FORMAT,
            documents=counts.documents,
            tokens=counts.tokens,
            text_bytes=counts.text_bytes,
            vocab_size=len(tokenizer),
            end_token_id=tokenizer.sep_token_id,
            dtype=narrowest_dtype(len(tokenizer)).name,
            tokenizer_fingerprint=tokenizers.fingerprint(tokenizer),
            files=[FileRecord.of(folder / name, name) for name in (f"{PREFIX_NAME}.bin", f"{PREFIX_NAME}.idx")],
            inputs=preparation.inputs,
            settings=preparation.settings,
            dropped={"empty_documents": tally.empty_documents, "cuts_in_long_documents": tally.cuts},
            libraries=library_versions(_LIBRARIES) | {"python": platform.python_version()},
            workers=workers,
            seconds=round(time.perf_counter() - start, 3),
            megabytes_per_second_per_worker=round(counts.text_bytes / 1e6 / counts.worker_seconds, 3),
        ).write(folder)


def _record(source: str) -> FileRecord:
    if source.startswith(PREFIX):
        return FileRecord(source, 0, identify(source))
    return FileRecord.of(Path(source), source)


def _save_tokenizer(preparation: Preparation, folder: Path, progress: bool) -> PreTrainedTokenizerBase:
    if preparation.tokenizer is None:
        assert preparation.vocab_size is not None
        _logger.info("training a %s tokenizer of %s entries", preparation.kind, f"{preparation.vocab_size:,}")
        documents = preparation.read(Tally(), "sampling for the tokenizer", progress)
        return tokenizers.train(documents, preparation.vocab_size, folder, kind=preparation.kind)
    preparation.tokenizer.save_pretrained(folder)
    return preparation.tokenizer


@dataclass
class _Counts:
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    worker_seconds: float = 1e-9

    def add(self, batch: Tokenized) -> None:
        self.documents += len(batch.lengths)
        self.tokens += len(batch.ids)
        self.text_bytes += batch.text_bytes
        self.worker_seconds += batch.seconds


def _builder(folder: Path, dtype: np.dtype[Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Transformer Engine and Apex, for which this part has no use
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder  # three seconds; readers do without

    builder = IndexedDatasetBuilder(str(folder / f"{PREFIX_NAME}.bin"), dtype=dtype.type)
    builder.sequence_lengths, builder.document_indices = array("i"), array("q", [0])  # 12 bytes a document, not 80
    return builder


def _write_tokens(
    documents: Iterator[str], tokenizer: PreTrainedTokenizerBase, folder: Path, builder: Any, workers: int
) -> _Counts:
    counts = _Counts()
    file = folder / TOKENIZER_FOLDER / "tokenizer.json"
    end_id = tokenizer.sep_token_id
    with closing(tokenize(documents, file, end_id=end_id, dtype=builder.dtype, workers=workers)) as batches:
        for batch in batches:
            if batch.ids.max() >= len(tokenizer):
                raise ValueError(
                    f"the tokenizer gave the id {batch.ids.max()} but says to have {len(tokenizer)} entries: its "
                    "vocabulary has gaps; take another tokenizer or train one"
                )
            ends = np.cumsum(batch.lengths)
            for start, end in zip(ends - batch.lengths, ends, strict=True):
                builder.add_document(batch.ids[start:end], [int(end - start)])
            counts.add(batch)
    builder.finalize(str(folder / f"{PREFIX_NAME}.idx"))
    return counts
