"""Input documents, damaged in every way that damage.py knows: read right or refused by name, in bounded memory."""

import gzip
import json
import lzma
import os
import shutil
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from damage import BYTES, LONG, REFUSED, RIGHT, Flip, Insert, Odd, apply, cases, damages, explore, right_or_refused
from hypothesis import strategies as st

from fast_electra.corpora.documents import read_documents

TEXTS = [
    f"Document {number}: na\u00efve \u2014 \U0001f600\n  second line.\n" * (number % 7 + 1) for number in range(40)
]
PACKERS = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def joined(texts):
    """All that is not blank: what reading must keep, wherever documents end."""
    return "".join("".join(texts).split())


def read(path):
    return lambda: joined(read_documents(path))


def lines(texts):
    return "\n".join(json.dumps({"id": 1, "text": text}) for text in texts).encode()


@pytest.fixture
def folder(tmp_path):
    """`case` with one file of each kind, and `other` with the same names and other content."""
    for name, texts in (("case", TEXTS), ("other", TEXTS[5:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")
        (tmp_path / name / "a.jsonl").write_bytes(lines(texts))
        table = pa.table({"n": range(len(texts)), "text": texts})
        pq.write_table(table, tmp_path / name / "a.parquet", write_page_checksum=True, row_group_size=16)
        for suffix, pack in PACKERS.items():
            (tmp_path / name / f"a.txt{suffix}").write_bytes(pack("\n\n".join(texts).encode()))
    return tmp_path


def hurt(folder, case):
    """A folder `hurt` beside the others with the damaged file alone in it; returns the file."""
    shutil.rmtree(folder / "hurt", ignore_errors=True)
    (folder / "hurt").mkdir()
    name = case[0][0]
    shutil.copyfile(folder / "case" / name, folder / "hurt" / name)
    apply(case, folder / "hurt", folder / "other")
    return folder / "hurt" / name


def plain_text(content):
    """What is in a text file, said in another way than the package's; None for what must be refused."""
    packed = content.startswith((b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"BZh", b"PK\x03\x04"))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if packed or not content or "\0" in text else joined([text])


def json_lines(content):
    if plain_text(content) is None:
        return None
    texts = []
    try:
        for line in content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
            if line and not line.isspace():
                text = json.loads(line)["text"]
                texts.append("" if text is None else text)
        joined(texts).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return joined(texts)


@cases(quick=60, long=1500)
@pytest.mark.parametrize(("name", "meaning"), [("a.txt", plain_text), ("a.jsonl", json_lines)])
def test_text_is_read_if_and_only_if_it_is_text(folder, name, meaning, examples):
    def check(case):
        path = hurt(folder, case)
        meant = meaning(path.read_bytes()) if path.is_file() and not path.is_symlink() else None
        outcome = right_or_refused(read(path), meant, path)
        assert (outcome == RIGHT) == (meant is not None)
        return outcome

    known = [[(name, Insert(at, content, True))] for at in (0, 9) for content in BYTES]
    outcomes = explore(check, damages([name]), examples, known)
    assert outcomes[RIGHT] and outcomes[REFUSED]


@cases(quick=45, long=1500)
def test_an_archive_gives_its_text_or_none(folder, examples):
    names = [f"a.txt{suffix}" for suffix in PACKERS]

    def check(case):
        path = hurt(folder, case)
        swapped = path.is_file() and path.read_bytes() == (folder / "other" / path.name).read_bytes()
        return right_or_refused(read(path), joined(TEXTS[5:] if swapped else TEXTS), path)

    known = [[(name, Flip(at, bit))] for name in names for at in range(24) for bit in (0, 3, 7)]
    outcomes = explore(check, st.one_of([damages([name]) for name in names]), examples, known)
    assert outcomes[RIGHT] and outcomes[REFUSED]


@cases(quick=60, long=1000)
def test_a_parquet_file_gives_its_text_or_none(folder, examples):
    """Its pages have checksums; its headers have none, so that a flipped bit there may leave out or repeat rows."""
    whole = (folder / "case" / "a.parquet").read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")

    def check(case):
        path = hurt(folder, case)
        return right_or_refused(read(path), ..., path)

    known = [[("a.parquet", Flip(footer + at, bit))] for at in range(0, len(whole) - footer, 3) for bit in (0, 6)]
    outcomes = explore(check, damages(["a.parquet"]), examples, known[: 4 * examples])
    assert outcomes[REFUSED]


@pytest.mark.parametrize("kind", ["pipe", "loop", "/dev/zero", "missing"])
def test_what_is_no_file_in_a_folder_is_named_and_not_left_out(folder, kind):
    Odd(kind).apply(folder / "case" / "a.txt", None)
    (folder / "case" / "a.txt.gz").unlink()
    outcome = right_or_refused(read(folder / "case"), ..., folder / "case" / "a.txt")
    assert outcome == (RIGHT if kind == "missing" else REFUSED)


def test_a_linked_folder_is_read_and_one_that_leads_back_is_refused(tmp_path):
    (tmp_path / "inputs").mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.txt").write_text("far")
    (tmp_path / "inputs" / "link").symlink_to(tmp_path / "far")
    assert list(read_documents(tmp_path / "inputs")) == ["far"]
    (tmp_path / "far" / "back").symlink_to(tmp_path / "inputs")
    with pytest.raises(ValueError, match=r"link/back' leads by a link to .*inputs', which is read already: remove"):
        list(read_documents(tmp_path / "inputs"))


_NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8") | st.sampled_from(" \n\t'\"-*?[]{}$`\\|;&%=,:"))
NAMES = _NAMES.filter(lambda name: len(name.encode()) < 200 and name.strip(".")) | st.sampled_from(
    [
        "-",
        "--help",
        "a\nb",
        " ",
        "'",
        '"',
        "$(id)",
        "`id`",
        "*",
        "\\",
        "~",
        "\u202e",
        "caf\u00e9",
        "cafe\u0301",
        "\udcff",
    ]
)


@cases(quick=60, long=500)
def test_any_name_will_do(tmp_path, examples):
    def check(case):
        folder = tmp_path / "names" / case[0]
        folder.mkdir(parents=True)
        try:
            path = folder / f"{case[1]}.jsonl"
            path.write_bytes(lines(["text"]))
            assert right_or_refused(read(path), "text", path) == RIGHT
            hidden = case[1].startswith(".")
            return right_or_refused(read(folder), "text", folder) if not hidden else RIGHT
        finally:
            shutil.rmtree(tmp_path / "names")

    assert explore(check, st.tuples(NAMES, NAMES), examples).keys() == {RIGHT}


def write_one_line(path, megabytes):
    """`megabytes` of one letter without a line end, in the format that the path's name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": ["x" * (megabytes << 20)]}), path)
        return
    openers = {".gz": gzip.open, ".xz": lzma.open, ".zst": zstandard.open}
    with openers.get(path.suffix, open)(path, "wb") as file:
        if ".jsonl" in path.suffixes:
            file.write(b'{"text": "')
        for _ in range(megabytes):
            file.write(b"x" * (1 << 20))
        if ".jsonl" in path.suffixes:
            file.write(b'"}')


@pytest.mark.parametrize(
    "suffix", [".txt", ".txt.zst", *(pytest.param(name, marks=LONG) for name in (".txt.gz", ".txt.xz"))]
)
def test_memory_stays_flat_over_one_line_of_100_mb(tmp_path, suffix):
    write_one_line(tmp_path / f"a{suffix}", 100)
    tracemalloc.start()
    characters = sum(map(len, read_documents(tmp_path / f"a{suffix}")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    os.truncate(tmp_path / f"a{suffix}", 0)
    assert characters == 100 << 20
    print(f"\n{suffix}: peak {peak / 1e6:.1f} MB")
    assert peak < 20e6


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_a_json_line_of_100_mb_is_refused_before_it_fills_memory(tmp_path, suffix):
    write_one_line(tmp_path / f"a{suffix}", 100)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"has a line of more than 33,554,432 characters.*write one document a line"):
        list(read_documents(tmp_path / f"a{suffix}"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"\n{suffix}: peak {peak / 1e6:.1f} MB")
    assert peak < 50e6
