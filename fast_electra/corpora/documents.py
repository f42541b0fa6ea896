"""Inputs as a stream of documents: text files, JSON lines, Parquet, folders of these, and `datasets`.

Everything is read block by block, so that memory does not grow with the input. What is left out or changed on the way
is counted in a `Tally`, never silent: documents without text are dropped, and one longer than `MAX_CHARACTERS` is cut
into several at a space (tokenising takes some hundred bytes of memory a character, and a file may be one line).

Sources:
    FILE            blank lines end documents; with .gz, .xz or .zst behind any of these names: compressed
    FILE.jsonl      also .json, .ndjson: one object a line, its text under `key`
    FILE.parquet    a string column named `key`
    FOLDER          all files inside, also of its folders, by name, links followed; hidden ones (a leading dot) are
                    not looked at
    hf:NAME[:CONFIG][:SPLIT]
                    a data set of the hub, or of a local folder (also one written by save_to_disk), streamed; the split
                    is "train" unless given (without a configuration: hf:NAME::SPLIT)
"""

import codecs
import io
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fast_electra.corpora.hub import PREFIX, read_texts, text_key_option
from fast_electra.files.compression import SUFFIXES, detect, read_bytes

MAX_CHARACTERS = 1 << 20

_JSON_SUFFIXES = {".jsonl", ".json", ".ndjson"}
_BLANK_LINES = re.compile(r"\n\s*\n")
_LEADING_BLANK_LINES = re.compile(r"\s*\n")
_ROWS = 256  # of a Parquet file, held at once
_MAX_LINE = 1 << 25  # characters of one line of JSON


@dataclass
class Tally:
    """What reading has counted so far; updated in place while documents are read."""

    stored_bytes: int = 0  # of the inputs as they are stored, compressed or not
    empty_documents: int = 0  # dropped: no text, or blanks only
    cuts: int = 0  # places at which a document longer than MAX_CHARACTERS became two

    def advance(self, stored_bytes: int) -> None:
        """Count bytes of an input as read."""
        self.stored_bytes += stored_bytes


def list_sources(inputs: Sequence[str | Path]) -> list[str]:
    """The inputs with folders replaced by their files, each checked for what its first bytes can tell.

    Raises FileNotFoundError, PermissionError or ValueError naming the input: missing, unreadable, empty, no regular
    file, compressed otherwise than its name says, a folder without files.
    """
    sources: list[str] = []
    for given in map(str, inputs):
        if given.startswith(PREFIX):
            sources.append(given)
        elif Path(given).is_dir():
            files = sorted(_walk(Path(given)))
            if not files:
                raise ValueError(f"the folder {given!r} holds no files: give one with text, or the files themselves")
            sources.extend(map(str, files))
        else:
            sources.append(given)
    for source in sources:
        if not source.startswith(PREFIX):
            detect(Path(source))
    return sources


def _walk(folder: Path) -> Iterator[Path]:
    """Every visible file below a folder, links followed; a folder that cannot be entered is an error, not left out."""

    def refuse(error: OSError) -> None:
        raise error

    entered: dict[Path, str] = {}
    for parent, inner, names in os.walk(folder, onerror=refuse, followlinks=True):
        first = entered.setdefault(Path(parent).resolve(), parent)
        if first != parent:
            raise ValueError(f"{parent!r} leads by a link to {first!r}, which is read already: remove the link")
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def read_documents(source: str | Path, *, key: str = "text", tally: Tally | None = None) -> Iterator[str]:
    """Yield the documents of one source (see the module's table): not empty, of at most `MAX_CHARACTERS` characters.

    `key` names the text of JSON lines, Parquet and data sets. Raises what `list_sources` does, and ValueError for a
    damaged or shortened archive, text that is not UTF-8 (with the byte's offset) and records without a text (with the
    line); documents before the fault have been yielded by then.
    """
    tally = Tally() if tally is None else tally
    for one in list_sources([source]):
        texts = read_texts(one, key, tally.advance) if one.startswith(PREFIX) else _read_file(Path(one), key, tally)
        for text in texts:
            yield from _pieces(text, tally)


def _read_file(path: Path, key: str, tally: Tally) -> Iterator[str]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = next((suffix for suffix in reversed(suffixes) if suffix not in SUFFIXES), "")
    if kind == ".parquet":
        return _parquet_texts(path, key, tally)
    blocks = _decode(read_bytes(path, tally.advance), path)
    return _json_texts(blocks, path, key) if kind in _JSON_SUFFIXES else _plain_texts(blocks, tally)


def _pieces(text: str, tally: Tally) -> Iterator[str]:
    """The document, cut at spaces into pieces of at most `MAX_CHARACTERS`."""
    if not text or text.isspace():
        tally.empty_documents += 1
        return
    start = 0
    while len(text) - start > MAX_CHARACTERS:
        end, resume = _cut(text, start)
        yield text[start:end]
        tally.cuts += 1
        start = resume
    yield text[start:] if start else text


def _cut(text: str, start: int) -> tuple[int, int]:
    """Where the piece that begins at `start` ends, and where the next begins: around a blank if there is one."""
    limit = start + MAX_CHARACTERS
    blank = max(text.rfind(" ", start, limit + 1), text.rfind("\n", start, limit + 1))
    return (blank, blank + 1) if blank > start else (limit, limit)


def _decode(blocks: Iterable[bytes], path: Path) -> Iterator[str]:
    """UTF-8 to text with "\\n" at the ends of lines, a byte order mark left out."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0
    for block in itertools.chain(blocks, [b""]):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _not_text(path, offset - pending + error.start, error.object[error.start]) from error
        if "\0" in text:
            raise _not_text(path, offset + block.index(0), 0)
        text = newlines.decode(text, final=not block)
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(block)


def _not_text(path: Path, offset: int, byte: int) -> ValueError:
    return ValueError(
        f"{str(path)!r} is not UTF-8 text: byte 0x{byte:02x} at offset {offset:,} (unpacked). Take a binary file out "
        "of the inputs; convert text of another encoding (iconv -t UTF-8)"
    )


def _plain_texts(blocks: Iterable[str], tally: Tally) -> Iterator[str]:
    held = ""
    for block in blocks:
        *whole, held = _BLANK_LINES.split(held + block)
        yield from filter(None, map(_trim, whole))
        while len(held) > MAX_CHARACTERS:
            end, resume = _cut(held, 0)
            yield held[:end]
            tally.cuts += 1
            held = held[resume:]
    if held := _trim(held):
        yield held


def _trim(text: str) -> str:
    """The text without blank lines at its beginning and blanks at its end."""
    blank_lines = _LEADING_BLANK_LINES.match(text)
    return text[blank_lines.end() if blank_lines else 0 :].rstrip()


def _json_texts(blocks: Iterable[str], path: Path, key: str) -> Iterator[str]:
    for number, line in enumerate(_lines(blocks, path), start=1):
        if line and not line.isspace():
            yield _json_text(line, f"line {number:,} of {str(path)!r}", key)


def _lines(blocks: Iterable[str], path: Path) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for block in blocks:
        *whole, rest = block.split("\n")
        for line in whole:
            yield "".join((*held, line))
            held.clear()
            size = 0
        held.append(rest)
        size += len(rest)
        if size > _MAX_LINE:
            raise ValueError(
                f"{str(path)!r} has a line of more than {_MAX_LINE:,} characters, which JSON needs in memory at once: "
                "write one document a line, longer ones in parts or as plain text"
            )
    yield "".join(held)


def _json_text(line: str, place: str, key: str) -> str:
    """The text of one JSON line; null counts as an empty document."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits, of arrays in arrays
        raise ValueError(
            f"{place} is not JSON ({error}): write one object a line, with its text under {key!r}"
        ) from error
    if not isinstance(record, dict):
        raise ValueError(f"{place} is a JSON {type(record).__name__}: write one object a line, its text under {key!r}")
    if key not in record:
        raise ValueError(
            f"{place} has no key {key!r}, only {sorted(record)!s:.200}: name the text's: {text_key_option(record)}"
        )
    text = "" if record[key] is None else record[key]
    if not isinstance(text, str):
        raise ValueError(
            f"{place} has a {type(text).__name__} under {key!r}: name the text's: {text_key_option(record)}"
        )
    if "\\ud" in line.lower():
        _refuse_surrogates(text, place)
    return text


def _refuse_surrogates(text: str, place: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{place} holds half a surrogate pair ({error}): repair or remove the line") from error


def _parquet_texts(path: Path, key: str, tally: Tally) -> Iterator[str]:
    import pyarrow  # half a second that other inputs need not wait for
    import pyarrow.parquet

    stored, done = path.stat().st_size, 0
    with tempfile.TemporaryFile() as unpacked:
        if detect(path):  # Parquet is read from its end: a compressed one has to be whole first
            unpacked.writelines(read_bytes(path))
        try:
            file = pyarrow.parquet.ParquetFile(unpacked if detect(path) else path, page_checksum_verification=True)
            _require_text_column(file.schema_arrow, path, key)
            rows = file.metadata.num_rows
            for batch in file.iter_batches(batch_size=_ROWS, columns=[key]):
                tally.advance(stored * (done + batch.num_rows) // rows - stored * done // rows)
                done += batch.num_rows
                yield from (text or "" for text in batch.column(0).to_pylist())
            if done != rows:
                raise pyarrow.ArrowInvalid(f"{done:,} rows where its footer says {rows:,}")
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{str(path)!r} is no readable Parquet file ({error}): fetch or write it again") from error


def _require_text_column(schema: Any, path: Path, key: str) -> None:
    types = {column.name: str(column.type) for column in schema}
    if not types.get(key, "").removeprefix("dictionary<values=").removeprefix("large_").startswith("string"):
        columns = ", ".join(f"{name} ({type_})" for name, type_ in types.items())
        raise ValueError(f"{str(path)!r} has no column {key!r} of text, but {columns}: name the text's: --text_key KEY")
