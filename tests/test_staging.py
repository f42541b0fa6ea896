"""A folder is there whole or not at all, whatever ends its writing."""

import errno
import shutil

import pytest

from fast_electra.files.staging import BusyError, staged


def write(output, **options):
    with staged(output, **options) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("content")


def test_it_appears_whole_under_its_name(tmp_path):
    with staged(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "deep" / "out").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out" / "file").read_text() == "content"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_by_an_error(tmp_path, error):
    with pytest.raises(error), staged(tmp_path / "out") as folder:
        (folder / "file").write_text("content")
        raise error
    assert not any(tmp_path.iterdir())


def test_an_empty_folder_is_replaced_and_a_full_one_refused(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"out' exists already.*remove it"):
        write(tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_killed_process_left_is_cleared(tmp_path):
    (tmp_path / "out.partial" / "old").mkdir(parents=True)
    (tmp_path / "out.partial" / "old" / "file").write_text("half")
    (tmp_path / "out.partial" / "link").symlink_to(tmp_path)
    write(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["inner"]
    assert tmp_path.exists()


def test_a_second_process_is_told_of_the_first_and_disturbs_nothing(tmp_path):
    with staged(tmp_path / "out") as folder:
        (folder / "file").write_text("content")
        with pytest.raises(BusyError, match=r"another process is writing .*out\.partial"):
            write(tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "content"


def test_too_little_space_is_seen_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 2 * 10**9))
    with pytest.raises(OSError, match=r"needs about 3\.00 GB, 2\.00 GB are free. Free some") as raised:
        write(tmp_path / "out", needed_bytes=3 * 10**9)
    assert raised.value.errno == errno.ENOSPC
    assert not any(tmp_path.iterdir())
    write(tmp_path / "out", needed_bytes=10**9)


def test_a_disk_that_becomes_full_is_named_and_nothing_is_left(tmp_path):
    message = r"no space left on the disk of .*out'.*nothing was left"
    with pytest.raises(OSError, match=message) as raised, staged(tmp_path / "out") as folder:
        (folder / "file").write_text("content")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.errno == errno.ENOSPC
    assert not any(tmp_path.iterdir())
