"""Zips of pictures out of what a visitor sent."""

import zipfile
import zlib
from pathlib import Path, PurePosixPath

from mmtrackers.processing.files import new_folder


def unpack_pictures(archive: Path, folder: Path, most: int, most_bytes: int) -> None:
    """The PNG files of a zip, by their bare names, into a new folder, all or none; ValueError for no zip, a damaged
    one, no PNG in it, two of one name, or more than `most` or (unpacked) `most_bytes` of them."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if m.filename.lower().endswith(".png") and not m.is_dir()]
            named = [(PurePosixPath(m.filename.replace("\\", "/")).name, m) for m in members]
            named = [(name, member) for name, member in named if not name.startswith(".")]
            if not named or len(dict(named)) != len(named):
                raise ValueError(f"{archive.name} must hold PNG files, each of a name of its own")
            if len(named) > most or sum(member.file_size for _, member in named) > most_bytes:
                raise ValueError(f"{archive.name} holds more than {most} pictures or {most_bytes / 2**20:.0f} MB")
            with new_folder(folder):
                for name, member in named:
                    # the size that the directory states bounds what is read
                    with opened.open(member) as packed:
                        (folder / name).write_bytes(packed.read(member.file_size))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{archive.name} cannot be read as a zip: {error}") from error
