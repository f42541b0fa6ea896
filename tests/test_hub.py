"""Data sets of the `datasets` library, here local ones: streamed, with configuration and split in the name."""

import json

import datasets
import pytest

from fast_electra.corpora.documents import Tally, read_documents
from fast_electra.corpora.hub import identify, read_texts


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    for split, texts in {"train": ["a", "", None, "b"], "test": ["c"]}.items():
        lines = [json.dumps({"text": text, "n": 1}) for text in texts]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_a_local_folder_is_streamed_by_split(folder):
    tally = Tally()
    assert list(read_documents(f"hf:{folder}", tally=tally)) == ["a", "b"]
    assert tally == Tally(stored_bytes=2, empty_documents=2)
    assert list(read_texts(f"hf:{folder}::test", "text")) == ["c"]
    assert list(read_texts(f"hf:{folder}:default:test", "text")) == ["c"]


def test_a_data_set_saved_to_disk_is_read_with_or_without_splits(tmp_path):
    whole = datasets.Dataset.from_dict({"body": ["x", "y"]})
    whole.save_to_disk(tmp_path / "whole")
    datasets.DatasetDict({"train": whole, "test": whole.select([1])}).save_to_disk(tmp_path / "split")
    assert list(read_texts(f"hf:{tmp_path}/whole", "body")) == ["x", "y"]
    assert list(read_texts(f"hf:{tmp_path}/split::test", "body")) == ["y"]
    assert identify(f"hf:{tmp_path}/whole") == identify(f"hf:{tmp_path}/split")


def test_what_identifies_a_folder_changes_with_its_files(folder):
    before = identify(f"hf:{folder}")
    assert identify(f"hf:{folder}") == before
    with (folder / "train.jsonl").open("a") as stream:
        stream.write('\n{"text": "more", "n": 1}')
    assert identify(f"hf:{folder}") != before


@pytest.mark.parametrize("rest", [":nowhere", "::nowhere", "/missing"])
def test_what_is_not_there_is_refused_with_the_form_of_the_name(folder, rest):
    with pytest.raises(ValueError, match=r"cannot be opened .*hf:NAME\[:CONFIG\]\[:SPLIT\]"):
        list(read_texts(f"hf:{folder}{rest}", "text"))


def test_a_row_without_text_under_the_key_is_refused(folder):
    with pytest.raises(ValueError, match=r"row 1 of .* has no 'body', only \['n', 'text'\]"):
        list(read_texts(f"hf:{folder}", "body"))
    with pytest.raises(ValueError, match=r"row 1 of .* has a int under 'n'"):
        list(read_texts(f"hf:{folder}", "n"))
