"""Pictures into a page, and zips of pictures out of what a visitor sent."""

import base64
import zipfile
from pathlib import Path, PurePosixPath

import cv2
import numpy as np


def data_url(picture: np.ndarray, widest: int = 1280, quality: int = 88) -> str:
    """A picture as text that a page shows, at most `widest` pixels wide."""
    height, width = picture.shape[:2]
    if width > widest:
        picture = cv2.resize(picture, (widest, round(height * widest / width)), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def unpack_pictures(archive: Path, folder: Path, most: int, most_bytes: int) -> None:
    """The PNG files of a zip, by their bare names, into a new folder; ValueError for no zip, no PNG in it, two of one
    name, or more than `most` or (unpacked) `most_bytes` of them."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if m.filename.lower().endswith(".png") and not m.is_dir()]
            named = [(PurePosixPath(m.filename.replace("\\", "/")).name, m) for m in members]
            named = [(name, member) for name, member in named if not name.startswith(".")]
            if not named or len(dict(named)) != len(named):
                raise ValueError(f"{archive.name} must hold PNG files, each of a name of its own")
            if len(named) > most or sum(member.file_size for _, member in named) > most_bytes:
                raise ValueError(f"{archive.name} holds more than {most} pictures or {most_bytes / 2**20:.0f} MB")
            folder.mkdir(parents=True)
            for name, member in named:
                # the size that the directory states bounds what is read
                with opened.open(member) as packed:
                    (folder / name).write_bytes(packed.read(member.file_size))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{archive.name} cannot be read as a zip: {error}") from error
