"""The command makes a corpus, says what it made, and answers a mistake with one message and exit status 2."""

import gzip
import importlib.util
import json
import lzma
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from transformers import AutoTokenizer

from fast_electra.files.staging import staged

ROOT = Path(__file__).parent.parent
COMMAND = ROOT / "launchers" / "prepare_corpus.py"
WIKIPEDIA = ROOT.parent / "shared" / "data" / "wikipedia" / "AA.txt.xz"
TEXTS = ["\n".join(line for line in topics[name].split("\n") if line.strip()) for name in sorted(topics)]


@pytest.fixture(scope="module")
def command():
    specification = importlib.util.spec_from_file_location("prepare_corpus", COMMAND)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.txt.xz"
    path.write_bytes(lzma.compress("\n\n".join(TEXTS).encode()))
    return path


@pytest.fixture(scope="module")
def made(text, tmp_path_factory):
    """As a user runs it: a process of its own, in a folder of its own."""
    folder = tmp_path_factory.mktemp("made")
    arguments = ["--input", str(text), "--vocab_size", "1000", "--output", "data/wiki", "--workers", "2"]
    done = subprocess.run([sys.executable, str(COMMAND), *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "data" / "wiki", done


def test_it_makes_a_corpus_and_says_what_it_made(made):
    folder, done = made
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == ["corpus.bin", "corpus.idx", "manifest.json", "tokenizer"]
    assert f"documents  {len(TEXTS):,}\n" in done.stdout
    assert f"tokens     {manifest['tokens']:,} (uint16)" in done.stdout
    assert re.search(r"[\d.]+ bytes a token", done.stdout) and re.search(
        r"[\d.]+ MB/s per worker, 2 workers", done.stdout
    )
    assert "dropped    0 empty documents, 0 cuts in long documents" in done.stdout
    assert len(AutoTokenizer.from_pretrained(folder / "tokenizer")) == 1000


def test_it_shows_progress_in_bytes_of_the_input_and_warns_of_nothing(made, text):
    stderr = made[1].stderr
    total = f"{text.stat().st_size / 1000:.1f}k"
    assert re.search(rf"tokenising: 100%.*{total}/{total} .*B/s", stderr)
    assert "Warning" not in stderr


def test_the_same_command_again_does_nothing(made, text, command, capsys, caplog):
    folder, _ = made
    caplog.set_level("INFO")
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert command.main(["--input", str(text), "--vocab_size", "1000", "--output", str(folder)]) == 0
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    assert "nothing to do" in caplog.text
    assert "documents" in capsys.readouterr().out


def test_a_given_tokenizer_is_taken_and_the_key_of_the_text_can_be_chosen(made, command, tmp_path, capsys):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"body": "one"}\n{"body": ""}\n{"body": "two"}'))
    for tokenizer in (made[0], made[0] / "tokenizer"):  # of a corpus, its own
        arguments = ["--input", str(tmp_path / "a.jsonl.gz"), "--text_key", "body", "--tokenizer", str(tokenizer)]
        assert command.main([*arguments, "--output", str(tmp_path / f"by_{tokenizer.name}")]) == 0
        out = capsys.readouterr().out
        assert "tokenizer  given, 1,000 entries" in out and "1 empty documents" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "missing.txt"], "no such input: 'missing.txt'"),
        (["--input", "empty.txt"], "'empty.txt' is empty"),
        (["--input", "binary.txt"], "is not UTF-8 text: byte 0xff at offset 1"),
        (["--input", "text.gz"], "is named for .gz compression"),
        (["--input", "text.txt", "--vocab_size", "5000"], "vocab_size=5000 is too large"),
        (["--input", "text.txt", "--vocab_size", "3"], "vocab_size=3 is too small"),
        (["--input", "text.txt", "--vocab_size", "0"], "vocab_size=0 is too small"),
        (["--input", "keys.jsonl"], "name the text's: --text_key content"),
        (["--input", "text.txt", "--tokenizer", "/no/such/folder"], "no tokenizer could be loaded from '/no/such"),
        (["--input", "text.txt", "--workers", "0"], "workers=0"),
    ],
)
def test_a_mistake_is_one_message_and_exit_status_2(command, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "empty.txt": b"",
        "binary.txt": b"a\xff",
        "text.gz": b"text",
        "text.txt": b"text " * 99,
        "keys.jsonl": b'{"content": "text " , "title": "", "id": 3}',
    }.items():
        Path(name).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    assert command.main([*arguments, "--output", "out"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert message in line and "Traceback" not in captured.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [(signal.SIGINT, 130, "interrupted; nothing was left behind"), (signal.SIGTERM, 75, "stopped; nothing was left")],
)
def test_told_to_stop_it_leaves_nothing(tmp_path, number, status, message):
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS * 40))
    arguments = ["--input", "a.txt", "--vocab_size", "1000", "--kind", "bpe", "--output", "out", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, str(COMMAND), *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "out.partial" / "corpus.bin").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)  # as a terminal does
    said, _ = process.communicate(timeout=60)
    assert process.returncode == status
    assert message in said and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_second_one_at_the_same_output_is_refused_and_disturbs_nothing(tmp_path, command, capsys):
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS))
    output = tmp_path / "out"
    with staged(output) as folder:
        (folder / "file").write_text("of the first")
        assert command.main(["--input", str(tmp_path / "a.txt"), "--output", str(output)]) == 2
        assert "error: another process is writing" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == ["file"]


def peak_mib(text: Path, output: Path) -> float:
    """Peak memory of the command's process plus that of its largest child for each of two workers."""
    code = (
        "import resource as r, runpy, sys\n"
        f"sys.argv = ['', '--input', {str(text)!r}, '--output', {str(output)!r}, '--workers', '2',"
        " '--vocab_size', '1000', '--kind', 'bpe']\n"
        f"try: runpy.run_path({str(COMMAND)!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "own, child = (r.getrusage(who).ru_maxrss for who in (r.RUSAGE_SELF, r.RUSAGE_CHILDREN))\n"
        "print('peak', (own + 2 * child) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(re.search(r"peak ([\d.]+)", done.stdout)[1])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(tmp_path, monkeypatch):
    draw = random.Random(0)
    words = [draw.randbytes(draw.randrange(1, 6)).hex() for _ in range(20_000)]
    peaks = []
    for megabytes in (12, 60):  # both beyond what the training of a tokenizer samples
        path = tmp_path / f"{megabytes}.txt"
        with path.open("w") as stream:
            while stream.tell() < megabytes * 10**6:
                stream.write(" ".join(draw.choices(words, k=2000)) + "\n\n")
        peaks.append(peak_mib(path, tmp_path / f"out_{megabytes}"))
    assert peaks[1] < peaks[0] + 60, peaks


@pytest.mark.slow
@pytest.mark.skipif(not WIKIPEDIA.exists(), reason="the shared Wikipedia text is not on this machine")
def test_a_hundred_megabytes_of_wikipedia_are_prepared_in_minutes(tmp_path):
    start = time.monotonic()
    arguments = ["--input", str(WIKIPEDIA), "--vocab_size", "16000", "--output", str(tmp_path / "wiki")]
    subprocess.run([sys.executable, str(COMMAND), *arguments], check=True, cwd=ROOT)
    manifest = json.loads((tmp_path / "wiki" / "manifest.json").read_text())
    assert manifest["documents"] > 6000
    assert 4.2 < manifest["text_bytes"] / manifest["tokens"] < 4.8
    assert time.monotonic() - start < 300
