"""A task ready for a model: rows of tokens to train on, and the way from the model's outputs to the task's measures.

Tokenising waits until rows are asked for, so that a task whose runs are all done costs its reading only.
"""

import difflib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fast_electra.evaluation import scores
from fast_electra.finetuning import glue, squad

HUB = "hub"  # in place of a folder
NAMES = (*glue.TASKS, *squad.TASKS)

# Texts tokenised together: of all at once, the memory of what is not asked for stays for good.
_CHUNK = 1000

# Rows of tokens to the model's outputs in the same order: logits (rows, labels), or those of start and end (rows, T).
Predict = Callable[[list[dict[str, Any]], str], Any]


class GlueTask:
    """A GLUE task's data, tokenised for one model."""

    def __init__(self, name: str, data: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.task = glue.TASKS[name]
        self.data = glue.read_hub(self.task) if data == HUB else glue.read_folder(self.task, data)
        self.tokenizer, self.max_length = tokenizer, max_length
        self.num_labels = len(self.task.labels) or 1
        self.dropped = self.data.dropped_lines
        self.fingerprint = _fingerprint([self.data.train, self.data.dev, self.data.test])

    @cached_property
    def train_rows(self) -> list[dict[str, Any]]:
        """Rows of token ids with `labels`."""
        rows = self._rows(self.data.train)
        return [row | {"labels": one.label} for row, one in zip(rows, self.data.train, strict=True)]

    @cached_property
    def _evaluation_rows(self) -> dict[str, list[dict[str, Any]]]:
        return {name: self._rows(one) for name, one in {**self.data.dev, **self.data.test}.items()}

    def evaluate(self, predict: Predict, folder: Path | None) -> dict[str, float]:
        """The task's measures on its dev sets; the test sets' predictions go to files in `folder`."""
        found: dict[str, float] = {}
        for suffix, examples in self.data.dev.items():
            found |= self._measures(self.task.metrics, self._outputs(predict, suffix, "dev"), examples, suffix)
        for name, examples in self.data.test.items():
            outputs = self._outputs(predict, name, name)
            if name == glue.DIAGNOSTICS and all(one.label is not None for one in examples):
                found |= self._measures(("matthews",), outputs, examples, "_ax")
            if folder is not None:
                glue.write_predictions(folder / f"{name}.tsv", self.task, outputs.tolist())
        return found

    def _outputs(self, predict: Predict, name: str, shown: str) -> NDArray[Any]:
        """Label numbers or scores, one a row."""
        logits = np.asarray(predict(self._evaluation_rows[name], shown), dtype=np.float64)
        return logits.argmax(axis=-1) if self.task.labels else logits.reshape(-1)

    @staticmethod
    def _measures(
        names: tuple[str, ...], outputs: NDArray[Any], examples: list[glue.Example], suffix: str
    ) -> dict[str, float]:
        labels = np.array([one.label for one in examples])
        return {name + suffix: value for name, value in scores.glue_metrics(names, outputs, labels).items()}

    def _rows(self, examples: list[glue.Example]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for first in range(0, len(examples), _CHUNK):
            chunk = examples[first : first + _CHUNK]
            texts = [list(column) for column in zip(*(one.texts for one in chunk), strict=True)]
            encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
            rows += [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        return rows


class SquadTask:
    """SQuAD's questions, tokenised for one model."""

    num_labels = 0

    def __init__(self, name: str, data: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.name, self.tokenizer, self.max_length = name, tokenizer, max_length
        both = [
            squad.read_hub(name, split) if data == HUB else squad.read(name, data, split) for split in ("train", "dev")
        ]
        (self.train, self.dropped), (self.dev, _) = both
        self.fingerprint = _fingerprint([self.train, self.dev])

    @cached_property
    def train_rows(self) -> list[dict[str, Any]]:
        """Windows of token ids with `start_positions` and `end_positions`."""
        return squad.windows(self.train, self.tokenizer, self.max_length, training=True).rows

    @cached_property
    def _dev_windows(self) -> squad.Windows:
        return squad.windows(self.dev, self.tokenizer, self.max_length, training=False)

    def evaluate(self, predict: Predict, folder: Path | None) -> dict[str, float]:
        """Exact match and F1 on the dev set; its answers go to a file in `folder`, as the official scripts read it."""
        start, end = predict(self._dev_windows.rows, "dev")
        answers = squad.answers(self.dev, self._dev_windows, start, end, may_be_none=self.name == "SQuAD-2.0")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f"{self.name}.json.partial"
            partial.write_text(json.dumps(answers, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            partial.replace(folder / f"{self.name}.json")
        return scores.squad_metrics(answers, {one.id: [text for text, _ in one.answers] for one in self.dev})


def read(name: str, data: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> GlueTask | SquadTask:
    """A task's data from the folder `data`, or from the hub. Raises ValueError naming what is missing."""
    return (GlueTask if name in glue.TASKS else SquadTask)(name, data, tokenizer, max_length)


def names(wanted: str) -> list[str]:
    """ "all", or names between commas, whatever their case; AX stands for MNLI, whose model it is asked of.

    Raises ValueError naming an unknown task and the nearest known one.
    """
    if wanted == "all":
        return list(NAMES)
    known = {name.lower(): name for name in NAMES} | {glue.DIAGNOSTICS.lower(): "MNLI"}
    found = []
    for one in wanted.split(","):
        if one.strip().lower() not in known:
            near = difflib.get_close_matches(one.strip().lower(), known, n=1)
            hint = f"; did you mean {known[near[0]]}?" if near else ""
            raise ValueError(f"tasks: {one.strip()!r} is none of {', '.join(NAMES)}, AX and all{hint}")
        found.append(known[one.strip().lower()])
    return list(dict.fromkeys(found))


def has_data(name: str, data: str) -> bool:
    """Whether the folder `data` has anything of a task."""
    if name in glue.TASKS:
        return glue.find_folder(data, (name,)) is not None
    return squad.find(name, data, "train") is not None


def _fingerprint(content: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())
