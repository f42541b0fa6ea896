"""What a corpus is made of, as a file beside it that people and programs read: counts, hashes, settings, losses.

Everything is typed and checked on reading, so that an edited or damaged manifest is an error here and not a KeyError
somewhere in a run. Hashes are xxh3_128: they tell a damaged file from a whole one at the speed of the disk (3 GB/s from
memory on one core); they are no protection against somebody who forges a file.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import xxhash

from fast_electra.files import json_file

FILE_NAME = "manifest.json"
FORMAT = 1

_BLOCK = 1 << 23


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """The version of each library; "not installed" for one that is imported from where it lies, as a checkout is."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True)
class FileRecord:
    """A file as it was when the corpus was made; a data set of `datasets` has its version in place of a hash."""

    name: str
    size_bytes: int
    xxh3_128: str

    @classmethod
    def of(cls, path: Path, name: str) -> "FileRecord":
        """Measure and hash a file."""
        return cls(name, path.stat().st_size, hash_file(path))


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json."""

    format: int  # of this file; readers refuse one they do not know
    documents: int
    tokens: int  # the end token of each document included
    text_bytes: int  # of the documents in UTF-8
    vocab_size: int
    end_token_id: int  # stands behind each document: the tokenizer's [SEP]
    dtype: str
    tokenizer_fingerprint: str
    files: list[FileRecord]  # corpus.bin, corpus.idx
    inputs: list[FileRecord]
    settings: dict[str, str]  # what, with the inputs, decides the tokens
    dropped: dict[str, int]  # what of the inputs is not in the corpus as it was, by reason
    libraries: dict[str, str]
    workers: int
    seconds: float  # from the first document to the last, without the training of a tokenizer
    megabytes_per_second_per_worker: float  # of text, while a worker works

    @property
    def fingerprint(self) -> str:
        """Identifies the stream of tokens and its documents: a hash over the hashes of the two files."""
        return xxhash.xxh3_128_hexdigest(" ".join(record.xxh3_128 for record in self.files).encode())

    def same_build(self, inputs: list[FileRecord], settings: dict[str, str]) -> bool:
        """Whether this corpus was made of the same contents (whatever their names) in the same way."""
        contents = [(record.size_bytes, record.xxh3_128) for record in inputs]
        return settings == self.settings and contents == [(one.size_bytes, one.xxh3_128) for one in self.inputs]

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        # A file's name may hold bytes that are no UTF-8: Python's escape for them is JSON's as well.
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read manifest.json of `folder`.

        Raises FileNotFoundError if there is none, and ValueError if it is no JSON, of another format, or if a field is
        missing, unknown or of the wrong type; the message names the field.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"no {str(path)!r}: {str(folder)!r} is no prepared corpus. Give a folder that prepare_corpus.py wrote, "
                "or the prefix (or .bin) of a Megatron corpus"
            )
        remedy = "Fetch it or prepare the corpus again"
        content = json_file.read(path, remedy)
        with json_file.named(path, remedy):
            if content.get("format", FORMAT) != FORMAT:
                raise ValueError(f"format is {content['format']!r:.60}, this version reads {FORMAT}")
            manifest: Manifest = json_file.typed(content, cls, "the whole")
        return manifest


def hash_file(path: Path) -> str:
    """The xxh3_128 of a file's bytes, 32 hexadecimal digits."""
    state = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            state.update(block)
    return state.hexdigest()
