"""Data sets of the `datasets` library as a stream of texts: of the hub, or of a local folder.

Streaming fetches what is read next and keeps nothing, so that a data set larger than the disk can be prepared; the
price is that preparing twice (training a tokenizer, then tokenising) fetches twice.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PREFIX = "hf:"


def read_texts(source: str, key: str, advance: Callable[[int], None] = lambda read: None) -> Iterator[str]:
    """Yield the texts under `key` of the rows of "hf:NAME[:CONFIG][:SPLIT]"; `advance` is told their size in bytes.

    A missing text (null) is yielded as an empty one. Raises ValueError naming the source if there is no such data set,
    configuration, split or column of text.
    """
    rows, _ = _open(source)
    number = 0
    for number, row in enumerate(rows, start=1):
        if key not in row:
            raise ValueError(
                f"row {number:,} of {source!r} has no {key!r}, only {sorted(row)}: name the text's: "
                f"{text_key_option(row)}"
            )
        text = "" if row[key] is None else row[key]
        if not isinstance(text, str):
            raise ValueError(
                f"row {number:,} of {source!r} has a {type(text).__name__} under {key!r}: name the text's: "
                f"{text_key_option(row)}"
            )
        advance(len(text.encode("utf-8", "replace")))
        yield text


def text_key_option(record: dict[str, Any]) -> str:
    """How to name the key of the text on the command line: that of the longest text in `record` is likely meant."""
    lengths = {key: len(value) for key, value in record.items() if isinstance(value, str)}
    return f"--text_key {max(lengths, key=lambda key: lengths[key], default='KEY')}"


def identify(source: str) -> str:
    """A name for the version of a data set: its commit on the hub, or a hash over its local files' sizes and times."""
    return _open(source)[1]


def _open(source: str) -> tuple[Any, str]:
    import datasets  # a second that other inputs need not wait for

    name, _, rest = source.removeprefix(PREFIX).partition(":")
    configuration, _, split = rest.partition(":")
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(name)
            rows = saved[split or "train"] if isinstance(saved, datasets.DatasetDict) else saved
            return rows, rows._fingerprint
        builder = datasets.load_dataset_builder(name, configuration or None)
        return builder.as_streaming_dataset(split=split or "train"), f"{builder.config.name}-{builder.hash}"
    except Exception as error:  # the library raises anything from KeyError to its own, the network's included
        raise ValueError(
            f"{source!r} cannot be opened ({type(error).__name__}: {error!s:.500}). The form is "
            "hf:NAME[:CONFIG][:SPLIT], and hf:NAME::SPLIT without a configuration; NAME is a data set of the hub or a "
            "local folder"
        ) from error
