"""Files that are written whole, and folders that one process writes at a time."""

import doctest
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmtrackers.processing import files
from mmtrackers.processing.files import FolderLock, write_json, write_text

HOLDER = """
import sys, time
from mmtrackers.processing.files import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_examples() -> None:
    assert doctest.testmod(files).failed == 0


def test_a_file_is_the_old_one_or_the_whole_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_json(tmp_path / "a" / "b.json", {"b": {2, 1}, "a": [1.0, 2.0]})
    before = path.read_text()
    assert before == '{\n  "a": [1.0, 2.0],\n  "b": [1, 2]\n}\n'

    def full(*_: object, **__: object) -> None:
        (tmp_path / "a" / f".b.json.{os.getpid()}").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"cannot write .*b\.json: No space left on device"):
        write_text(path, "new")
    assert path.read_text() == before and [file.name for file in path.parent.iterdir()] == ["b.json"]


def test_a_second_process_is_told_who_writes_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OSError, match=rf"out is being written by process {holder.pid} on "), FolderLock(folder):
            pass
        holder.send_signal(signal.SIGKILL)  # whatever ends a process, its lock goes with it
    with FolderLock(folder), pytest.raises(OSError, match=f"process {os.getpid()}"), FolderLock(folder):
        pass
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("where", "reason"), [("file/sub", "Not a directory"), ("file", "File exists")])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, where: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"cannot write into .*{where} \({reason}\): choose another"):
        FolderLock(tmp_path / where).__enter__()


def test_a_full_disk_names_the_folder_and_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.socket, "gethostname", full)
    with pytest.raises(OSError, match=r"out \(No space left on device\)"), FolderLock(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []
