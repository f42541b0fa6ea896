"""Corpora and their tokenizers, damaged in every way that damage.py knows: the same tokens, or refused by name."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from damage import (
    REFUSED,
    RIGHT,
    Flip,
    Insert,
    Replace,
    apply,
    cases,
    damages,
    explore,
    fresh,
    right_or_refused,
)

from fast_electra.batching.batches import Batches
from fast_electra.corpora import corpus
from fast_electra.corpora.corpus import Corpus
from fast_electra.settings.config import DataConfig

UNHURT = [("corpus.bin", Insert(0, b"", False))]
TOKENIZER_FILES = ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]
DATA = DataConfig(sequence_length=16, held_out_rows=4)


def build(inputs, output, tokenizer):
    corpus.build([inputs], output, tokenizer=tokenizer, workers=1, progress=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory, documents, tiny_tokenizer):
    """Two corpora of one tokenizer, `case` and `other`, and the text of the first."""
    folder = tmp_path_factory.mktemp("corpora")
    for name, texts in (("case", documents[:12]), ("other", documents[12:24])):
        (folder / f"{name}.txt").write_text("\n\n".join(texts))
        build(folder / f"{name}.txt", folder / name, tiny_tokenizer)
    (folder / "inputs").mkdir()
    shutil.copyfile(folder / "other.txt", folder / "inputs" / "a.txt")
    return folder


def content(opened):
    """All that a run takes from a corpus."""
    tokens = np.asarray(opened.tokens)
    return opened.fingerprint, opened.tokenizer_fingerprint, tokens.tobytes(), opened.document_starts.tolist()


def verified(path):
    opened = Corpus.open(path)
    opened.verify()
    return content(opened)


@cases(quick=40, long=1000)
def test_a_verified_corpus_is_the_one_that_was_made(made, tmp_path, examples):
    whole = content(Corpus.open(made / "case"))

    def check(case):
        with fresh(tmp_path / "hurt", made / "case") as folder:
            apply(case, folder, made / "other")
            return right_or_refused(lambda: verified(folder), whole, folder)

    known = [[("corpus.idx", Flip(at, bit))] for at in range(0, 40, 3) for bit in (0, 7)]
    known += [UNHURT, [("manifest.json", Replace(b'{"format": ' + b"9" * 5000 + b"}"))]]
    files = ["corpus.bin", "corpus.idx", "manifest.json"]
    outcomes = explore(check, damages(files, ["manifest.json"]), examples, known)
    assert outcomes[RIGHT] and outcomes[REFUSED]


@cases(quick=25, long=500)
@pytest.mark.parametrize("foreign", [False, True], ids=["own", "foreign"])
def test_an_unverified_corpus_gives_ids_of_its_vocabulary_or_none(made, tmp_path, tiny_tokenizer, foreign, examples):
    def ids(path):
        batches = Batches([(Corpus.open(path), 1.0)], DATA, seed=0)
        for first in range(0, 1024, 256):
            found = batches.training(first, 256).input_ids
            assert found.min() >= 0 and found.max() < len(tiny_tokenizer)

    def check(case):
        with fresh(tmp_path / "hurt", made / "case") as folder:
            if foreign:
                (folder / "manifest.json").unlink()
            apply(case, folder, made / "other")
            return right_or_refused(lambda: ids(folder / "corpus.bin"), ..., folder, "near-empty documents")

    known = [UNHURT, *([("corpus.bin", Insert(at, b"\xff" * 2, True))] for at in (0, 100, 1000))]
    outcomes = explore(check, damages(["corpus.bin", "corpus.idx"]), examples, known)
    assert outcomes[RIGHT] and outcomes[REFUSED]


@cases(quick=25, long=400)
def test_a_tokenizer_does_what_it_did_or_is_refused(made, tmp_path, examples):
    def check(case):
        with fresh(tmp_path / "hurt", made / "case") as folder:
            apply(case, folder, made / "other")
            return right_or_refused(lambda: Corpus.open(folder).tokenizer and None, None, folder)

    outcomes = explore(check, damages(TOKENIZER_FILES, TOKENIZER_FILES), examples, [UNHURT])
    assert outcomes[RIGHT] and outcomes[REFUSED]


@cases(quick=6, long=120)
def test_a_build_leaves_a_whole_corpus_or_nothing(made, tmp_path, tiny_tokenizer, examples):
    def check(case):
        inputs, output = tmp_path / "in", tmp_path / "some where" / "a\nb"
        inputs.mkdir()
        try:
            shutil.copyfile(made / "case.txt", inputs / "a.txt")
            apply(case, inputs, made / "inputs")
            outcome = right_or_refused(lambda: build(inputs, output, tiny_tokenizer), ..., inputs)
            assert (outcome == RIGHT) == output.exists()
            if outcome == RIGHT:
                verified(output)
                assert [path.name for path in output.parent.iterdir()] == [output.name]
            else:
                assert [path.name for path in tmp_path.iterdir()] == ["in"]
            return outcome
        finally:
            for path in tmp_path.iterdir():
                shutil.rmtree(path)

    known = [[("a.txt", Insert(0, b"", False))], [("a.txt", Insert(2**14, b"\xff", True))]]
    outcomes = explore(check, damages(["a.txt"]), examples, known)
    assert outcomes[RIGHT] and outcomes[REFUSED]


@pytest.mark.parametrize("kind", ["a file", "below a file", "a link to nowhere", "a link to a folder", "a loop", "/"])
def test_an_output_that_cannot_be_made_is_refused_before_anything_is_read(made, tmp_path, tiny_tokenizer, kind):
    output = tmp_path / "out"
    match kind:
        case "a file":
            output.write_text("mine")
        case "below a file":
            output.write_text("mine")
            output = output / "corpus"
        case "a link to nowhere":
            output.symlink_to(tmp_path / "nowhere")
        case "a link to a folder":
            (tmp_path / "empty").mkdir()
            output.symlink_to(tmp_path / "empty")
        case "a loop":
            output.symlink_to(output)
        case root:
            output = Path(root)
    before = sorted(tmp_path.rglob("*"))
    assert right_or_refused(lambda: build(made / "case.txt", output, tiny_tokenizer), None, output) == REFUSED
    assert sorted(tmp_path.rglob("*")) == before
