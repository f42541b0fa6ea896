"""The built-in corpus: real English, the same in every process, one document between blank lines."""

import re
import subprocess
import sys

import pytest

from fast_electra.corpora import documentation
from fast_electra.corpora.documents import read_documents


@pytest.fixture(scope="module")
def yielded():
    return list(documentation.documents())


@pytest.fixture(scope="module")
def written(tmp_path_factory, yielded):
    with pytest.MonkeyPatch.context() as patch:  # parsing the library takes seconds: once is enough
        patch.setattr(documentation, "documents", lambda: iter(yielded))
        return documentation.write(tmp_path_factory.mktemp("written") / "new" / "folder")


@pytest.fixture(scope="module")
def texts(written):
    return written.read_text(encoding="utf-8").rstrip("\n").split("\n\n")


def test_there_are_megabytes_of_mostly_english_words(texts):
    text = "\n".join(texts)
    assert len(text) > 1_500_000
    words = re.findall(r"[a-z]+", text.lower())
    share = sum(word in {"the", "of", "a", "to", "is", "and", "in"} for word in words) / len(words)
    assert share > 0.15  # of these seven words, English prose has about a fifth


def test_the_three_sources_are_all_there(texts):
    whole = "\n".join(texts)
    assert "Assert statements are a convenient way to insert debugging assertions" in whole  # a topic
    assert "JSON (JavaScript Object Notation)" in whole  # a module of the library
    assert "Return the absolute value of the argument." in whole  # a built-in


def test_a_document_holds_no_blank_line_and_is_not_repeated(written, yielded, texts):
    assert all(line.strip() for text in texts for line in text.split("\n"))
    assert len(set(texts)) == len(texts)
    assert list(read_documents(written)) == texts == yielded


def test_a_wrapped_paragraph_is_one_line_and_code_keeps_its_lines():
    text = "First line of it\nand the second.\n\nUse::\n\n    a = 1\n    b = 2\n\n\n>>> f(x)\n3\n"
    assert documentation._plain(text) == "First line of it and the second.\nUse::\n    a = 1\n    b = 2\n>>> f(x)\n3"


def test_a_file_that_does_not_parse_is_left_out(tmp_path):
    (tmp_path / "broken.py").write_text('"""Text."""\nprint "python 2"\n')
    assert documentation._docstrings(tmp_path / "broken.py") == []


def test_docstrings_come_in_the_order_of_the_source(tmp_path):
    source = '"""m"""\nclass A:\n    """a"""\n    def f(self):\n        """f"""\ndef g():\n    """g"""\n'
    (tmp_path / "module.py").write_text(source)
    assert documentation._docstrings(tmp_path / "module.py") == ["m", "a", "f", "g"]


def test_another_process_writes_the_same_bytes(written, tmp_path):
    code = f"from fast_electra.corpora import documentation; documentation.write({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONHASHSEED": "7"})
    assert (tmp_path / documentation.FILE_NAME).read_bytes() == written.read_bytes()
