"""Files that are there whole or not at all, and folders that one process writes at a time."""

import json
import os
import re
import shutil
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def read_text(path: str | Path, what: str) -> str:
    """A text file that a person made, in UTF-8 with a byte-order mark or without; ValueError, which says `what` it is,
    where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the {what} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def write_text(path: str | Path, text: str) -> Path:
    """Writes a UTF-8 text file, and its folder; a reader finds the old file or the whole new one, never a part, also
    after an OSError, which names the file."""
    path = Path(path)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_text(text, encoding="utf-8")
        os.replace(staging, path)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def write_json(path: str | Path, content: Any) -> Path:
    """Writes JSON as `write_text` does: keys sorted, sets as sorted lists, lists of numbers on one line."""

    def plain(value: Any) -> Any:
        if isinstance(value, (set, frozenset)):
            return sorted(value)
        raise TypeError(f"{Path(path).name}: cannot write a {type(value).__name__} as JSON.")

    text = json.dumps(content, indent=2, sort_keys=True, default=plain)
    text = re.sub(r"\[\s+([-+.\deE]+(?:,\s+[-+.\deE]+)*)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    return write_text(path, text + "\n")


class FolderLock:
    """Keeps a folder to one process while it writes there; a second one gets an OSError that names the first.

    The lock is the operating system's, so that it is gone with its process, however that ended. Where a file system
    has no locks a warning says so, and the folder is not guarded. Of the processes of one run only the main one locks.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / ".lock"
        self._file: BinaryIO | None = None

    def __enter__(self) -> "FolderLock":
        try:
            if fcntl is not None:
                self._take()
        except OSError as error:
            self.__exit__()
            if error.errno is None:  # said in our own words
                raise
            raise OSError(f"cannot write into {self.path.parent} ({error.strerror}): choose another folder") from error
        return self

    def _take(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            # without a buffer, which would keep what a full disk refuses and fail again when it is closed
            file = open(self.path, "ab+", buffering=0)  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                owner = file.read().decode().strip() or "another process"
                file.close()
                where = f"{self.path.parent} is being written by {owner}"
                raise OSError(f"{where}: wait for its end, or choose another folder") from error
            except OSError as error:
                file.close()
                warnings.warn(f"{self.path.parent} cannot be locked ({error.strerror}): see to it that no other run "
                              "writes there", stacklevel=3)  # fmt: skip
                return
            if _is_file_at(file, self.path):
                self._file = file
            else:  # its last owner has removed it meanwhile
                file.close()
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()} ({Path(sys.argv[0]).name})\n".encode())

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


@contextmanager
def new_folder(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Keeps a folder to this process while it is made; after an error it is gone again, unless it was there before.
    FileExistsError where it holds something, without `overwrite`, or is a file; OSError where another writes there."""
    folder = Path(folder)
    existed, taken = folder.exists(), f"{folder} exists and is not an empty folder: choose another one"
    if existed and not folder.is_dir():
        raise FileExistsError(taken)
    with FolderLock(folder) as lock:
        if existed and not overwrite and any(path != lock.path for path in folder.iterdir()):
            raise FileExistsError(taken)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        except BaseException:
            if not existed:
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _is_file_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
