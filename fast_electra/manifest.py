"""What a corpus is made of, as a file beside it that people and programs read: counts, hashes, settings, losses.

Everything is typed and checked on reading, so that an edited or damaged manifest is an error here and not a KeyError
somewhere in a run. Hashes are xxh3_128: they tell a damaged file from a whole one at the speed of the disk (3 GB/s from
memory on one core); they are no protection against somebody who forges a file.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import xxhash

FILE_NAME = "manifest.json"
FORMAT = 1

_BLOCK = 1 << 23


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
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")

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
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
                raise ValueError(f"format is {content['format']!r}, this version reads {FORMAT}")
            return _typed(content, cls, "the whole")
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            raise ValueError(f"{str(path)!r} is broken: {error}. Fetch it or prepare the corpus again") from error


def hash_file(path: Path) -> str:
    """The xxh3_128 of a file's bytes, 32 hexadecimal digits."""
    state = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def _typed(value: Any, kind: Any, place: str) -> Any:
    """The parsed JSON as what `kind` says (a dataclass, list[...], dict[str, ...], str, int, float), or ValueError."""
    if hasattr(kind, "__dataclass_fields__"):
        return _typed_fields(value, kind, place)
    container = get_origin(kind)
    if container is list and isinstance(value, list):
        return [_typed(item, get_args(kind)[0], f"{place}[{index}]") for index, item in enumerate(value)]
    if container is dict and isinstance(value, dict):
        return {key: _typed(item, get_args(kind)[1], f"{place}[{key!r}]") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        name = getattr(kind, "__name__", str(kind))
        raise ValueError(f"{place} is {value!r:.60}, a {type(value).__name__} where a {name} belongs")
    if kind in (int, float) and not value >= 0:
        raise ValueError(f"{place} is {value!r}, which cannot be negative")
    return value


def _typed_fields(value: Any, kind: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is a {type(value).__name__} where an object belongs")
    names = {field.name for field in fields(kind)}
    if names != set(value):
        missing, unknown = sorted(names - set(value)), sorted(set(value) - names)
        raise ValueError(f"{place} has fields missing: {missing}, and unknown: {unknown}")
    types = get_type_hints(kind)
    return kind(**{name: _typed(value[name], types[name], name) for name in names})
