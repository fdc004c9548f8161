"""Pictures into a page, and zips of pictures out of what a visitor sent."""

import base64
import zipfile
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

WIDEST = 1280


def data_url(picture: np.ndarray) -> str:
    """A picture as text that a page shows, at most 1,280 pixels wide.

    Example:
        >>> data_url(np.zeros((4, 4, 3), np.uint8))[:22]
        'data:image/jpeg;base64'
    """
    height, width = picture.shape[:2]
    if width > WIDEST:
        picture = cv2.resize(picture, (WIDEST, round(height * WIDEST / width)), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def unpack_pictures(archive: Path, folder: Path, most: int, most_bytes: int) -> None:
    """The PNG files of a zip, by their bare names, into a new folder.

    Args:
        archive (`Path`): the zip.
        folder (`Path`): made here.
        most (`int`): pictures.
        most_bytes (`int`): of all of them together, unpacked.

    Raises:
        ValueError: no zip, no PNG in it, two of one name, or more than the bounds.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if m.filename.lower().endswith(".png") and not m.is_dir()]
            names = [PurePosixPath(m.filename.replace("\\", "/")).name for m in members]
            members = [m for m, name in zip(members, names, strict=True) if not name.startswith(".")]
            names = [name for name in names if not name.startswith(".")]
            if not members or len(set(names)) != len(names):
                raise ValueError(f"{archive.name} must hold PNG files, each of a name of its own")
            if len(members) > most or sum(m.file_size for m in members) > most_bytes:
                raise ValueError(f"{archive.name} holds more than {most} pictures or {most_bytes / 2**20:.0f} MB")
            folder.mkdir(parents=True)
            for member, name in zip(members, names, strict=True):
                # the size that the directory states bounds what is read
                with opened.open(member) as packed:
                    (folder / name).write_bytes(packed.read(member.file_size))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{archive.name} cannot be read as a zip: {error}") from error
