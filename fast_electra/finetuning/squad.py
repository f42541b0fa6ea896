"""SQuAD 1.1 and 2.0 (Rajpurkar et al., 2016, 2018): files to windows of tokens, logits of start and end to answers.

A paragraph longer than a row is cut into windows that overlap; a window that does not hold the whole answer, or a
question that has none, points at [CLS], the row's first token. The answer of a question is the best span of all its
windows by the sum of start and end logit; in SQuAD 2.0 none, if [CLS] does better than it in every window (the rule
of BERT, Devlin et al., 2019, with threshold 0).
"""

import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fast_electra.finetuning.glue import find_folder

HUB = {"SQuAD-1.1": "rajpurkar/squad", "SQuAD-2.0": "rajpurkar/squad_v2"}
TASKS = tuple(HUB)
_VERSIONS = {"SQuAD-1.1": "v1.1", "SQuAD-2.0": "v2.0"}
_OVERLAP, _QUESTION_TOKENS = 128, 64  # at most a third of a row each
_BEST, _ANSWER_TOKENS = 20, 30
_CHUNK = 1000  # questions tokenised at once


class Question(NamedTuple):
    """A question on a paragraph with its true answers as (text, first character); none: it cannot be answered."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Windows:
    """Rows of tokens, and for each, unless it is for training, the number of its question and its tokens' characters
    in the paragraph."""

    rows: list[dict[str, Any]]
    questions: list[int]
    characters: list[list[tuple[int, int] | None]]  # None: a token that is not of the paragraph


def find(task: str, data: str, split: str) -> Path | None:
    """The file of "train" or "dev" in the folder `data` or its squad/, packed by xz or not."""
    folders = [find_folder(data, ("squad", "SQuAD")), Path(data)]
    names = (f"{split}-{_VERSIONS[task]}.json{packed}" for packed in ("", ".xz"))
    paths = (folder / name for name in names for folder in folders if folder is not None)
    return next((path for path in paths if path.exists()), None)


def read(task: str, data: str, split: str) -> tuple[list[Question], int]:
    """The questions of "train" or "dev" below `data`, and how many were left out of training: their answer's place is
    not where its text is. Raises ValueError naming the file and the way out."""
    path = find(task, data, split)
    if path is None:
        name = f"{split}-{_VERSIONS[task]}.json"
        raise ValueError(
            f"data = {data!r} has no {name} (nor {name}.xz, nor either in its squad/): give the folder that holds it, "
            f"or leave {task} out of --tasks, or pass --data hub"
        )
    try:
        with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as file:
            articles = json.load(file)["data"]
        questions = [
            Question(
                str(one["id"]),
                one["question"],
                paragraph["context"],
                tuple((answer["text"], int(answer["answer_start"])) for answer in one["answers"]),
            )
            for article in articles
            for paragraph in article["paragraphs"]
            for one in paragraph["qas"]
        ]
    except (ValueError, KeyError, TypeError, EOFError, lzma.LZMAError) as error:
        raise ValueError(
            f"data: {str(path)!r} is no SQuAD file ({type(error).__name__}: {error}): give the official one"
        ) from error
    if not questions:
        raise ValueError(f"data: {str(path)!r} holds no question: give the official file")
    return _checked(questions, split)


def read_hub(task: str, split: str, repository: str | None = None) -> tuple[list[Question], int]:
    """The same through `datasets`. Raises ValueError naming the data set when it cannot be had."""
    import datasets  # a second that other inputs need not wait for

    repository = repository or HUB[task]
    try:
        rows = datasets.load_dataset(repository, split="validation" if split == "dev" else split)
    except Exception as error:  # the library raises anything from KeyError to its own, the network's included
        raise ValueError(
            f"data: {repository!r} cannot be had ({type(error).__name__}: {error}). Without a network give a folder "
            "of the official files: --data FOLDER"
        ) from error
    questions = [
        Question(
            row["id"],
            row["question"],
            row["context"],
            tuple(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)),
        )
        for row in rows
    ]
    return _checked(questions, split)


def _checked(questions: list[Question], split: str) -> tuple[list[Question], int]:
    if split != "train":
        return questions, 0
    kept = [one for one in questions if all(one.context[at : at + len(text)] == text for text, at in one.answers[:1])]
    return kept, len(questions) - len(kept)


def windows(questions: list[Question], tokenizer: PreTrainedTokenizerBase, max_length: int, training: bool) -> Windows:
    """Tokenise the questions with their paragraphs in rows of at most `max_length` tokens.

    Training rows carry `start_positions` and `end_positions`: the tokens of the first true answer.
    """
    made = Windows([], [], [])
    for first in range(0, len(questions), _CHUNK):
        chunk = questions[first : first + _CHUNK]
        encoded = tokenizer(
            [_shortened(one.question.strip(), tokenizer, min(_QUESTION_TOKENS, max_length // 3)) for one in chunk],
            [one.context for one in chunk],
            truncation="only_second",
            max_length=max_length,
            stride=min(_OVERLAP, max_length // 3),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for window, which in enumerate(encoded["overflow_to_sample_mapping"]):
            place = zip(encoded.sequence_ids(window), encoded["offset_mapping"][window], strict=True)
            characters = [span if part == 1 else None for part, span in place]
            row = {name: encoded[name][window] for name in tokenizer.model_input_names if name in encoded}
            if training:
                row["start_positions"], row["end_positions"] = _answer_tokens(chunk[which], characters) or (0, 0)
            else:
                made.questions.append(first + which)
                made.characters.append(characters)
            made.rows.append(row)
    return made


def _shortened(question: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> str:
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = offsets["offset_mapping"]
    return question if len(spans) <= max_tokens else question[: spans[max_tokens - 1][1]]


def _answer_tokens(one: Question, characters: list[tuple[int, int] | None]) -> tuple[int, int] | None:
    """The first and last token of the answer, when the window holds it whole."""
    if not one.answers or not one.answers[0][0]:
        return None
    (text, first), inside = one.answers[0], [index for index, span in enumerate(characters) if span is not None]
    last = first + len(text)
    spans = {index: characters[index] or (0, 0) for index in inside}
    if not inside or spans[inside[0]][0] > first or spans[inside[-1]][1] < last:
        return None
    start = next(index for index in inside if spans[index][1] > first)
    return start, next(index for index in reversed(inside) if spans[index][0] < last)


def answers(
    questions: list[Question], made: Windows, start: NDArray[Any], end: NDArray[Any], may_be_none: bool
) -> dict[str, str]:
    """The answer of each question, by id, from the logits (windows, T) of first and last token; "" for none."""
    best = dict.fromkeys(range(len(questions)), (-np.inf, ""))
    none = dict.fromkeys(best, np.inf)
    for window, number in enumerate(made.questions):
        characters = made.characters[window]
        none[number] = min(none[number], float(start[window, 0] + end[window, 0]))
        found = _best_span(start[window], end[window], characters)
        if found is not None and found[0] > best[number][0]:
            score, first, last = found
            best[number] = (score, questions[number].context[first:last].strip())
    return {
        questions[number].id: "" if may_be_none and none[number] > score else text
        for number, (score, text) in best.items()
    }


def _best_span(
    start: NDArray[Any], end: NDArray[Any], characters: list[tuple[int, int] | None]
) -> tuple[float, int, int] | None:
    """The logits' sum, first and last character of a window's best span among its best starts and ends."""
    inside = np.array([index for index, span in enumerate(characters) if span is not None], dtype=np.int64)
    if not inside.size:
        return None
    first = inside[np.argsort(-start[inside], kind="stable")[:_BEST]]
    last = inside[np.argsort(-end[inside], kind="stable")[:_BEST]]
    sums = start[first][:, None] + end[last][None, :]
    tokens = last[None, :] - first[:, None] + 1
    sums = np.where((tokens >= 1) & (tokens <= _ANSWER_TOKENS), sums, -np.inf)
    at = np.unravel_index(int(np.argmax(sums)), sums.shape)
    if not np.isfinite(sums[at]):
        return None
    begin, stop = characters[first[at[0]]], characters[last[at[1]]]
    assert begin is not None and stop is not None
    return float(sums[at]), begin[0], stop[1]
