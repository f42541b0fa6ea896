"""SQuAD: windows hold the answers they point at, and the best span of all windows is the answer."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from task_files import write_squad

from fast_electra.finetuning import squad
from fast_electra.finetuning.squad import Question

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "squad"
CONTEXT = " ".join(f"The {number}th sentence, of no use (at all), ends." for number in range(40))
ANSWERS = ("0th sentence", "17th sentence, of", "(at all), ends.", "39th sentence, of no use (at all), ends")


def questions():
    return [
        Question(str(number), "Which one is it?", CONTEXT, ((text, CONTEXT.index(text)),))
        for number, text in enumerate(ANSWERS)
    ]


def certain(made, number, span):
    """Logits that are sure of the tokens that hold these characters of question `number`."""
    longest = max(len(row["input_ids"]) for row in made.rows)
    logits = np.zeros((2, len(made.rows), longest))
    for window, which in enumerate(made.questions):
        spans = {index: place for index, place in enumerate(made.characters[window]) if place}
        start = [index for index, (_, last) in spans.items() if last > span[0]]
        end = [index for index, (first, _) in spans.items() if first < span[1]]
        if which == number and start and end and spans[start[0]][0] <= span[0] and spans[end[-1]][1] >= span[1]:
            logits[0, window, start[0]] = logits[1, window, end[-1]] = 9.0
    return logits


def test_the_tokens_that_training_points_at_are_the_answer(tiny_tokenizer):
    for one in questions():
        rows = squad.windows([one], tiny_tokenizer, 96, training=True).rows
        windows = squad.windows([one], tiny_tokenizer, 96, training=False)
        assert len(rows) > 10 and all(len(row["input_ids"]) <= 96 for row in rows)
        pointed = [
            (window, row["start_positions"], row["end_positions"])
            for window, row in enumerate(rows)
            if row["start_positions"] > 0
        ]
        assert 1 <= len(pointed) < len(rows), "windows overlap, and most do not hold the answer"
        for window, first, last in pointed:
            text = CONTEXT[windows.characters[window][first][0] : windows.characters[window][last][1]]
            assert text.strip(" .),").endswith(one.answers[0][0].strip(".),")), "a token may be longer than the answer"
        assert all(row["end_positions"] == 0 for row in rows if row["start_positions"] == 0)


def test_an_answer_without_text_is_none(tiny_tokenizer):
    for at in (-1, 0, 2):
        one = questions()[0]._replace(answers=(("", at),))
        rows = squad.windows([one], tiny_tokenizer, 96, training=True).rows
        assert {(row["start_positions"], row["end_positions"]) for row in rows} == {(0, 0)}


def test_the_best_span_of_all_windows_is_the_answer(tiny_tokenizer):
    several = questions()
    made = squad.windows(several, tiny_tokenizer, 96, training=False)
    total = np.zeros((2, len(made.rows), 96))
    for number, one in enumerate(several):
        text, first = one.answers[0]
        logits = certain(made, number, (first, first + len(text)))
        total[:, :, : logits.shape[2]] += logits
    found = squad.answers(several, made, *total, may_be_none=True)
    for number, text in enumerate(ANSWERS):
        assert text.rstrip(".") in found[str(number)] and len(found[str(number)]) <= len(text) + 3
    total[:, :, 0] = 20.0
    assert set(squad.answers(several, made, *total, may_be_none=True).values()) == {""}
    assert squad.answers(several, made, *total, may_be_none=False) == found


def test_an_answer_is_never_in_the_question_nor_backwards_nor_very_long(tiny_tokenizer):
    one = questions()[:1]
    made = squad.windows(one, tiny_tokenizer, 96, training=False)
    start, end = np.zeros((2, len(made.rows), 96))
    start[0, 60] = end[0, 40] = 9.0  # backwards
    start[1, 2] = end[1, 3] = 50.0  # in the question
    start[2, 30] = end[2, 31 + 40] = 7.0  # longer than any answer
    start[3, 40] = end[3, 42] = 6.0
    first, last = made.characters[3][40][0], made.characters[3][42][1]
    assert squad.answers(one, made, start, end, may_be_none=False) == {"0": CONTEXT[first:last].strip()}


def test_a_long_question_leaves_room_for_the_paragraph(tiny_tokenizer):
    long = Question("1", "why " * 500, CONTEXT, ((ANSWERS[0], CONTEXT.index(ANSWERS[0])),))
    rows = squad.windows([long], tiny_tokenizer, 96, training=True).rows
    assert any(row["start_positions"] for row in rows) and all(len(row["input_ids"]) <= 96 for row in rows)


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_files_are_read_packed_or_not_and_misplaced_answers_left_out_of_training(tmp_path, version):
    write_squad(tmp_path, version, train=9, dev=4)
    task = f"SQuAD-{version}"
    train, dropped = squad.read(task, str(tmp_path), "train")
    assert (len(train), dropped) == (9, 0)
    assert all(one.context[at : at + len(text)] == text for one in train for text, at in one.answers)
    assert (0 in [len(one.answers) for one in train]) == (version == "2.0")
    asked = {"id": "x", "question": "q", "answers": [{"text": "no", "answer_start": 3}]}
    content = {"data": [{"paragraphs": [{"context": "where is no", "qas": [asked]}]}]}
    (tmp_path / "squad").mkdir()
    for split in ("train", "dev"):
        (tmp_path / "squad" / f"{split}-v{version}.json").write_text(json.dumps(content))
    assert squad.read(task, str(tmp_path), "train") == ([], 1)
    assert len(squad.read(task, str(tmp_path), "dev")[0]) == 1, "every question of the dev set counts"


@pytest.mark.skipif(not REAL.exists(), reason="the shared SQuAD files are not on this machine")
def test_the_published_files_are_whole_and_windows_find_their_answers(tiny_tokenizer):
    train, dropped = squad.read("SQuAD-1.1", str(REAL), "train")
    assert (len(train), dropped) == (87_599, 0)
    assert len(squad.read("SQuAD-1.1", str(REAL), "dev")[0]) == 10_570
    assert len(squad.read("SQuAD-2.0", str(REAL), "dev")[0]) == 11_873
    some = train[::440]
    made = squad.windows(some, tiny_tokenizer, 384, training=False)
    rows = squad.windows(some, tiny_tokenizer, 384, training=True).rows
    hits, exact = set(), set()
    for row, number, characters in zip(rows, made.questions, made.characters, strict=True):
        if first := row["start_positions"]:
            text = some[number].context[characters[first][0] : characters[row["end_positions"]][1]]
            hits.add(number)
            exact |= {number} if text.strip() == some[number].answers[0][0] else set()
    assert len(hits) > 0.98 * len(some) and len(exact) > 0.9 * len(some), (len(hits), len(exact), len(some))


def test_what_is_no_squad_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no train-v1\.1\.json \(nor train-v1\.1\.json\.xz.*--data hub"):
        squad.read("SQuAD-1.1", str(tmp_path), "train")
    for content in ("{", "[]", '{"data": [{"paragraphs": 3}]}'):
        (tmp_path / "train-v1.1.json").write_text(content)
        with pytest.raises(ValueError, match=r"train-v1\.1\.json' is no SQuAD file"):
            squad.read("SQuAD-1.1", str(tmp_path), "train")
    (tmp_path / "train-v1.1.json").write_text('{"data": []}')
    with pytest.raises(ValueError, match=r"train-v1\.1\.json' holds no question"):
        squad.read("SQuAD-1.1", str(tmp_path), "train")
    (tmp_path / "train-v2.0.json.xz").write_bytes(b"not packed")
    with pytest.raises(ValueError, match="is no SQuAD file"):
        squad.read("SQuAD-2.0", str(tmp_path), "train")


def test_a_data_set_of_the_hub_is_read_by_its_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    row = {"id": "1", "title": "t", "context": "a b", "question": "q", "answers": {"text": ["b"], "answer_start": [2]}}
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    wanted = ([Question("1", "q", "a b", (("b", 2),))], 0)
    assert squad.read_hub("SQuAD-1.1", "train", str(tmp_path)) == wanted
    assert squad.read_hub("SQuAD-1.1", "dev", str(tmp_path)) == wanted
    with pytest.raises(ValueError, match=r"cannot be had .*--data FOLDER"):
        squad.read_hub("SQuAD-1.1", "dev", str(tmp_path / "nothing"))
