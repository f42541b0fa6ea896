"""GLUE's files: read as they are published, and predictions as the server takes them."""

from pathlib import Path

import datasets
import pytest
from task_files import NLI, write_task

from fast_electra.finetuning import glue
from fast_electra.finetuning.glue import TASKS, Example

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "glue"


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("task", TASKS)
def test_every_official_layout_is_read(task, tmp_path):
    data = glue.read_folder(TASKS[task], str(write_task(tmp_path, task, train=6, dev=4, test=5)))
    assert len(data.train) == 6 and data.dropped_lines == 0
    assert list(data.dev) == (["", "_mm"] if task == "MNLI" else [""])
    assert list(data.test) == (["MNLI-m", "MNLI-mm"] if task == "MNLI" else [task])
    assert all(len(one) == 4 for one in data.dev.values()) and all(len(one) == 5 for one in data.test.values())
    for example in [*data.train, *data.dev[""]]:
        *first, last = example.texts
        assert all(text.startswith('"') for text in first), "a quotation mark is a character like any other"
        signal = next(number for number, word in enumerate(("bad", "good", "dull")) if word in last.split())
        assert example.label == (last.split().count("good") if task == "STS-B" else signal)
    assert {len(example.texts) for one in data.test.values() for example in one} == {len(TASKS[task].columns)}
    assert all(example.label is None for one in data.test.values() for example in one)


@pytest.mark.skipif(not REAL.exists(), reason="the shared GLUE files are not on this machine")
@pytest.mark.parametrize(
    ("task", "train", "dev"),
    [("CoLA", 8551, 1043), ("SST-2", 67349, 872), ("MRPC", 3668, 408), ("STS-B", 5749, 1500), ("RTE", 2490, 277)],
)
def test_the_published_files_give_every_example(task, train, dev):
    data = glue.read_folder(TASKS[task], str(REAL))
    assert (len(data.train), len(data.dev[""]), data.dropped_lines) == (train, dev, 0)
    assert {one.label for one in data.dev[""]} >= ({0, 1} if TASKS[task].labels else {0.0, 5.0, 2.5})


def test_cola_has_no_header_but_in_its_test_file(tmp_path):
    for name in ("train.tsv", "dev.tsv"):
        write(tmp_path / "CoLA", name, 'gj04\t1\t\t"Quoted, and\u2028odd\x85 line ends.\ngj04\t0\t*\tBad one.\n')
    write(tmp_path / "CoLA", "test.tsv", "index\tsentence\n0\tFirst.\n1\tSecond.\n")
    data = glue.read_folder(TASKS["CoLA"], str(tmp_path))
    assert data.train == [Example(('"Quoted, and\u2028odd\x85 line ends.',), 1), Example(("Bad one.",), 0)]
    assert data.test == {"CoLA": [Example(("First.",), None), Example(("Second.",), None)]}


def test_lines_of_qqp_with_missing_fields_are_left_out_and_counted(tmp_path):
    folder = write_task(tmp_path, "QQP", train=300, dev=4, test=3)
    with (folder / "QQP" / "train.tsv").open("a") as file:
        file.write("7\t1\t2\tonly one question\n")
    data = glue.read_folder(TASKS["QQP"], str(folder))
    assert (len(data.train), data.dropped_lines) == (300, 1)
    with (folder / "QQP" / "test.tsv").open("a") as file:
        file.write("3\thalf a pair\n")  # the server counts every line
    assert glue.read_folder(TASKS["QQP"], str(folder)).test["QQP"][-1].texts == ("half a pair", "")


@pytest.mark.parametrize(
    ("file", "text", "labels"),
    [
        ("AX/AX.tsv", "index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n", [None, None]),
        ("diagnostic/diagnostic.tsv", "index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n", [None, None]),
        (
            "diagnostic/diagnostic-full.tsv",
            "Logic\tDomain\tPremise\tHypothesis\tLabel\nx\ty\ta\tb\tneutral\nx\ty\tc\td\tentailment\n",
            [1, 0],
        ),
    ],
)
def test_the_diagnostic_set_is_read_beside_mnli(tmp_path, file, text, labels):
    write_task(tmp_path / "glue", "MNLI", 6, 3)
    write(tmp_path / "glue", file, text)
    found = glue.read_folder(TASKS["MNLI"], str(tmp_path)).test
    assert found == {"AX": [Example(("a", "b"), labels[0]), Example(("c", "d"), labels[1])]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dev.tsv": None}, r"there is no '.*dev\.tsv'"),
        ({"dev.tsv": "index\tsentence1\tsentence2\n0\ta\tb\n"}, r"has no column 'label', only \['index'"),
        ({"dev.tsv": "index\tsentence1\tsentence2\tlabel\n"}, "holds no example"),
        (
            {"dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n"},
            r"line 2 of .*dev\.tsv'.*'maybe'; RTE has",
        ),
        (
            {"dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tb\n"},
            "fewer fields than their head",
        ),
        ({"dev.tsv": b"index\tsentence1\tsentence2\tlabel\n\xff\n"}, "no UTF-8"),
    ],
)
def test_a_file_that_is_not_the_official_one_is_refused(tmp_path, change, message):
    folder = write_task(tmp_path, "RTE", train=4, dev=4)
    for name, content in change.items():
        path = folder / "RTE" / name
        path.unlink()
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        glue.read_folder(TASKS["RTE"], str(folder))


def test_a_score_that_is_no_number_and_a_missing_folder_are_refused(tmp_path):
    folder = write_task(tmp_path, "STS-B", train=4, dev=4)
    with (folder / "STS-B" / "dev.tsv").open("a") as file:
        file.write("\t".join(["x"] * 9 + ["high"]) + "\n")
    with pytest.raises(ValueError, match=r"line 6 .*score 'high'; STS-B has numbers from 0 to 5"):
        glue.read_folder(TASKS["STS-B"], str(folder))
    for score in ("nan", "-1", "6"):
        lines = (folder / "STS-B" / "dev.tsv").read_text().splitlines()
        lines[-1] = "\t".join(["x"] * 9 + [score])
        (folder / "STS-B" / "dev.tsv").write_text("\n".join(lines) + "\n")
        with pytest.raises(ValueError, match=rf"line 6 .*score '{score}'; STS-B has numbers from 0 to 5"):
            glue.read_folder(TASKS["STS-B"], str(folder))
    with pytest.raises(ValueError, match=r"has no folder 'WNLI'.*--data hub"):
        glue.read_folder(TASKS["WNLI"], str(folder))


def test_a_data_set_of_the_hub_is_read_by_its_columns(tmp_path, monkeypatch):
    """A local folder in the hub's layout: configurations named in its card, split names, labels as numbers."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    card = ["---", "configs:"]
    rows = 'premise,hypothesis,label,idx\na,"b, ""c""",{0},0\nd,e,{1},1\n'
    splits = {"mnli": ["train", "validation_matched", "validation_mismatched", "test_matched"], "ax": ["test"]}
    for name, held in splits.items():
        card += [f"- config_name: {name}", "  data_files:"]
        for split in held:
            card += [f"  - split: {split}", f"    path: {name}/{split}.csv"]
            labels = (-1, -1) if split.startswith("test") else (2, 0)
            write(tmp_path / name, f"{split}.csv", rows.format(*labels))
    write(tmp_path, "README.md", "\n".join([*card, "---"]))
    data = glue.read_hub(TASKS["MNLI"], str(tmp_path))
    pairs = [("a", 'b, "c"'), ("d", "e")]
    assert data.train == data.dev["_mm"] == [Example(pairs[0], 2), Example(pairs[1], 0)]
    assert data.test == {name: [Example(pair, None) for pair in pairs] for name in ("MNLI-m", "AX")}
    with pytest.raises(ValueError, match=r"'rte' cannot be had .*--data FOLDER"):
        glue.read_hub(TASKS["RTE"], str(tmp_path))


def test_predictions_are_written_as_the_server_takes_them(tmp_path):
    glue.write_predictions(tmp_path / "new" / "MNLI-m.tsv", TASKS["MNLI"], [2, 0, 1])
    lines = (tmp_path / "new" / "MNLI-m.tsv").read_text().splitlines()
    assert lines == ["index\tprediction", *(f"{index}\t{NLI[label]}" for index, label in enumerate((2, 0, 1)))]
    glue.write_predictions(tmp_path / "CoLA.tsv", TASKS["CoLA"], [1, 0])
    assert (tmp_path / "CoLA.tsv").read_text() == "index\tprediction\n0\t1\n1\t0\n"
    glue.write_predictions(tmp_path / "STS-B.tsv", TASKS["STS-B"], [-0.2, 2.71828, 5.4])
    assert (tmp_path / "STS-B.tsv").read_text() == "index\tprediction\n0\t0.000\n1\t2.718\n2\t5.000\n"
