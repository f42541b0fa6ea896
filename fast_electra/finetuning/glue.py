"""The GLUE tasks (Wang et al., 2019): what their files hold, what is measured, what its server takes.

Files are read in the official layout (a folder a task, tab-separated, no quoting: a quotation mark is a character like
any other), data sets of the hub by the column names of `nyu-mll/glue`. The diagnostic set (AX) is no task of its own:
the model of MNLI is asked, and the predictions are written beside MNLI's.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HUB = "nyu-mll/glue"
DIAGNOSTICS = "AX"
_NLI = ("entailment", "neutral", "contradiction")
_ENTAILMENT = ("entailment", "not_entailment")
_BINARY = ("0", "1")


class Example(NamedTuple):
    """One or two texts, and the label's number in `Task.labels` (the score itself where there are no labels)."""

    texts: tuple[str, ...]
    label: int | float | None


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks."""

    name: str  # of the folder and, where there is one test set, of the prediction file
    columns: tuple[str, ...]  # the header's names of the text or the two texts
    label: str  # the header's name of the label
    labels: tuple[str, ...]  # in the order of the hub's numbers; none: the label is a score from 0 to 5
    metrics: tuple[str, ...]
    hub_name: str
    hub_columns: tuple[str, ...] = ()  # where they are not `columns`
    header: tuple[str, ...] = ()  # of train and dev files that have none
    dev: dict[str, str] = field(default_factory=lambda: {"": "dev"})  # what the metric's name ends in → file
    test: dict[str, str] = field(default_factory=dict)  # prediction file → file


_PAIR = ("sentence1", "sentence2")
TASKS = {
    task.name: task
    for task in (
        Task(
            "CoLA",
            ("sentence",),
            "label",
            _BINARY,
            ("matthews",),
            "cola",
            header=("source", "label", "star", "sentence"),
        ),
        Task("SST-2", ("sentence",), "label", _BINARY, ("accuracy",), "sst2"),
        Task("MRPC", ("#1 String", "#2 String"), "Quality", _BINARY, ("f1", "accuracy"), "mrpc", _PAIR),
        Task("STS-B", _PAIR, "score", (), ("pearson", "spearman"), "stsb"),
        Task("QQP", ("question1", "question2"), "is_duplicate", _BINARY, ("f1", "accuracy"), "qqp"),
        Task(
            "MNLI",
            _PAIR,
            "gold_label",
            _NLI,
            ("accuracy",),
            "mnli",
            ("premise", "hypothesis"),
            dev={"": "dev_matched", "_mm": "dev_mismatched"},
            test={"MNLI-m": "test_matched", "MNLI-mm": "test_mismatched"},
        ),
        Task("QNLI", ("question", "sentence"), "label", _ENTAILMENT, ("accuracy",), "qnli"),
        Task("RTE", _PAIR, "label", _ENTAILMENT, ("accuracy",), "rte"),
        Task("WNLI", _PAIR, "label", _BINARY, ("accuracy",), "wnli"),
    )
}
# The diagnostic set as the GLUE server's data has it, and as published with its labels (diagnostic-full.tsv).
_DIAGNOSTICS = Task(DIAGNOSTICS, _PAIR, "gold_label", _NLI, ("matthews",), "ax", ("premise", "hypothesis"))
_FULL_DIAGNOSTICS = Task(DIAGNOSTICS, ("Premise", "Hypothesis"), "Label", _NLI, ("matthews",), "ax")
_DIAGNOSTIC_FILES = {
    "diagnostic/diagnostic-full.tsv": _FULL_DIAGNOSTICS,
    "AX/diagnostic-full.tsv": _FULL_DIAGNOSTICS,
    "AX/AX.tsv": _DIAGNOSTICS,
    "diagnostic/diagnostic.tsv": _DIAGNOSTICS,
    "MNLI/diagnostic.tsv": _DIAGNOSTICS,
}


@dataclass(frozen=True)
class TaskData:
    """The examples of a task, and how many lines of its train and dev files had too few fields to be one."""

    train: list[Example]
    dev: dict[str, list[Example]]  # what the metric's name ends in → examples with labels
    test: dict[str, list[Example]]  # prediction file → examples; AX may have labels
    dropped_lines: int = 0


def find_folder(data: str, names: tuple[str, ...]) -> Path | None:
    """The first of the folders `data`/NAME, `data`/glue/NAME, `data`/GLUE/NAME that is there."""
    places = (Path(data, part, name) for name in names for part in ("", "glue", "GLUE"))
    return next((place for place in places if place.is_dir()), None)


def read_folder(task: Task, data: str) -> TaskData:
    """Read a task's files below `data`. Raises ValueError naming the file, the line and the way out."""
    folder = find_folder(data, (task.name,))
    if folder is None:
        raise ValueError(
            f"data = {data!r} has no folder {task.name!r} (looked there and in its glue/): give the folder that holds "
            f"{task.name}/train.tsv, or leave {task.name} out of --tasks, or pass --data hub"
        )
    train, dropped = _read(folder / "train.tsv", task)
    dev = {}
    for suffix, stem in task.dev.items():
        dev[suffix], also = _read(folder / f"{stem}.tsv", task)
        dropped += also
    if dropped > 0.01 * (len(train) + sum(map(len, dev.values()))):
        raise ValueError(
            f"data: {dropped:,} lines of train.tsv and {', '.join(task.dev.values())} in {str(folder)!r} have fewer "
            f"fields than their header: these are not {task.name}'s official files (tab-separated, without quoting)"
        )
    test = {}
    for name, stem in (task.test or {task.name: "test"}).items():
        if (folder / f"{stem}.tsv").exists():
            test[name], _ = _read(folder / f"{stem}.tsv", task, test=True)
    if task.name == "MNLI":
        for file, layout in _DIAGNOSTIC_FILES.items():
            if DIAGNOSTICS not in test and (folder.parent / file).exists():
                test[DIAGNOSTICS], _ = _read(folder.parent / file, layout, test=True)
    return TaskData(train, dev, test, dropped)


def read_hub(task: Task, repository: str = HUB) -> TaskData:
    """Read a task through `datasets`. Raises ValueError naming the data set when it cannot be had."""
    import datasets  # a second that other inputs need not wait for

    try:
        splits = datasets.load_dataset(repository, task.hub_name)
        extra = datasets.load_dataset(repository, _DIAGNOSTICS.hub_name) if task.name == "MNLI" else {}
    except Exception as error:  # the library raises anything from KeyError to its own, the network's included
        raise ValueError(
            f"data: {repository!r} with configuration {task.hub_name!r} cannot be had ({type(error).__name__}: "
            f"{error}). Without a network give a folder of GLUE's official files: --data FOLDER"
        ) from error
    test = {
        name: list(_from_hub(splits[stem], task, test=True))
        for name, stem in (task.test or {task.name: "test"}).items()
        if stem in splits
    }
    if "test" in extra:
        test[DIAGNOSTICS] = list(_from_hub(extra["test"], _DIAGNOSTICS, test=True))
    dev = {suffix: stem.replace("dev", "validation") for suffix, stem in task.dev.items()}
    return TaskData(
        list(_from_hub(splits["train"], task)),
        {suffix: list(_from_hub(splits[stem], task)) for suffix, stem in dev.items()},
        test,
    )


def _from_hub(rows: Any, task: Task, test: bool = False) -> Iterator[Example]:
    for row in rows:
        label = None if test and row["label"] == -1 else row["label"]
        yield Example(tuple(row[column] for column in task.hub_columns or task.columns), label)


def _read(path: Path, task: Task, test: bool = False) -> tuple[list[Example], int]:
    """The examples of a file and the number of lines left out for want of fields.

    A test file's lines are all kept, a field that is missing as an empty text: the server counts them.
    """
    lines = _lines(path)
    header = [] if test else list(task.header)
    if not header:
        header = lines.pop(0).split("\t") if lines else []
    wanted = [*task.columns] if test else [*task.columns, task.label]
    missing = [name for name in wanted if name not in header]
    if missing:
        raise ValueError(
            f"data: {str(path)!r} has no column {missing[0]!r}, only {header[:12]}: give {task.name}'s official file"
        )
    texts = [header.index(name) for name in task.columns]
    labelled = task.label in header and (not test or task.name == DIAGNOSTICS)
    label = header.index(task.label) if labelled else None
    examples, dropped = [], 0
    for number, line in enumerate(lines, start=1 if task.header and not test else 2):
        fields = line.split("\t")
        if not test and len(fields) <= max(*texts, label or 0):
            dropped += 1
            continue
        fields += [""] * (len(header) - len(fields))
        value = None if label is None else _label(fields[label], task, f"line {number} of {str(path)!r}")
        examples.append(Example(tuple(fields[index] for index in texts), value))
    if not examples:
        raise ValueError(f"data: {str(path)!r} holds no example: give {task.name}'s official file")
    return examples, dropped


def _lines(path: Path) -> list[str]:
    """Lines end in a line feed and nowhere else: some texts hold other characters that Python takes for line ends."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"data: there is no {str(path)!r}: give the folder of the official files") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {str(path)!r} is no UTF-8 ({error}): give the official file") from error
    return [line for line in re.split(r"\r?\n", text) if line]


def _label(text: str, task: Task, place: str) -> int | float:
    if task.labels:
        if text in task.labels:
            return task.labels.index(text)
        raise ValueError(f"data: {place} has the label {text!r:.40}; {task.name} has {list(task.labels)}")
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 5:
        raise ValueError(f"data: {place} has the score {text!r:.40}; {task.name} has numbers from 0 to 5")
    return score


def write_predictions(path: Path, task: Task, predictions: list[float]) -> None:
    """Write label numbers (or scores) as the GLUE server takes them: a header, then index, tab, label's name."""
    names = [task.labels[int(one)] if task.labels else f"{min(max(one, 0.0), 5.0):.3f}" for one in predictions]
    lines = ["index\tprediction", *(f"{index}\t{name}" for index, name in enumerate(names))]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)
