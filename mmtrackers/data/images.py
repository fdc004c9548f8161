"""Reading of image files: what each modality may be, whole files only, turned as the camera was held."""

import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mmtrackers.processing.frames import check_modality

_AS_STORED = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
_TIFF = (b"II*\0", b"MM\0*")
_DAMAGE = (OSError, SyntaxError, TypeError)  # what Pillow raises of a TIFF file that was cut off
_FLIR = re.compile(rb"\xff\xe1..FLIR\0", re.DOTALL)  # the segment of a JPEG that holds a FLIR camera's raw counts


def _is_truncated(data: bytes) -> bool:
    """Whether a JPEG, PNG or BMP ends before its end (decoders fill the rest with gray, or with nothing)."""
    if data[:2] == b"\xff\xd8":
        at = 2
        # A thumbnail in a header segment has an end marker of its own: only one behind the first scan counts.
        while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
            at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        return data.rfind(b"\xff\xd9", at) < 0
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND" not in data[-64:] and data.rfind(b"IEND\xaeB`\x82") < 0
    if data[:2] == b"BM" and len(data) >= 54:
        offset, width, height = (int.from_bytes(data[i : i + 4], "little", signed=i > 10) for i in (10, 18, 22))
        bits, packing = int.from_bytes(data[28:30], "little"), int.from_bytes(data[30:34], "little")
        stride = (width * bits + 31) // 32 * 4
        return packing in (0, 3) and offset + stride * abs(height) > len(data)
    return False


@dataclass(frozen=True)
class EncodedImage:
    """An image file in memory or in a dataset, in the place of its path: its bare name, its bytes, and where it is."""

    name: str
    data: bytes | memoryview
    place: str = "memory"

    def __str__(self) -> str:
        return f"{self.name} in {self.place}"

    def read_bytes(self) -> bytes:
        """The whole file, as `Path.read_bytes`."""
        return bytes(self.data)


def read_image(path: str | Path | EncodedImage, modality: str = "rgb") -> np.ndarray:
    """Read one image file as the image processor wants it; ValueError, which names it, where it is missing, empty,
    truncated, no image, or no image of that modality.

    Returns:
        `np.ndarray`: "rgb": [H, W, 3] uint8 in RGB order. "event": the same, or [H, W] if the file is gray. "thermal":
        as event, or uint16 where the file has 16 bits, or [H, W] float32 (degrees). "depth": [H, W] uint16 in the
        file's own unit (mm in the public sets). All of them turned as their EXIF orientation says.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.png"
        >>> _ = cv2.imwrite(str(file), np.full((2, 3, 3), (0, 0, 255), np.uint8))
        >>> read_image(file)[0, 0].tolist()
        [255, 0, 0]
    """
    check_modality(modality)
    try:
        data = (path if isinstance(path, EncodedImage) else Path(path)).read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the image {path}: {error.strerror or error}") from error
    if not data:
        raise ValueError(f"the image {path} is empty (0 bytes)")
    if _is_truncated(data):
        raise ValueError(f"the image {path} is truncated ({len(data)} bytes, its end is missing): copy it again")
    if data[:4] in _TIFF and (pages := page_count(data)) > 1:
        raise ValueError(f"{path} has {pages} pages, which are a sequence: give the file itself in the folder's place")
    if data[:2] == b"\xff\xd8" and _FLIR.search(data, 0, 1 << 18):
        folder = path.place if isinstance(path, EncodedImage) else Path(path).parent
        warnings.warn(f"the pictures of {folder} are radiometric JPEG (FLIR): read is the 8-bit picture that they "
                      "show, in its palette's colors, not their temperatures; to have these, export them as 16-bit or "
                      "float TIFF", stacklevel=2)  # fmt: skip
    # not IMREAD_UNCHANGED, which leaves pictures as the camera was held
    flags = cv2.IMREAD_COLOR if modality == "rgb" and not _may_be_deep(data) else _AS_STORED
    image = _decoded(data, flags)
    if image is None:
        raise ValueError(f"{path} is not a readable image ({len(data)} bytes)")
    if modality == "rgb" and flags == _AS_STORED:
        if image.ndim == 2 and image.dtype != np.uint8:
            raise ValueError(f"{path} has one channel of {image.dtype}, so it is no RGB picture: read it as "
                             "thermal or depth (--modality)")
        image = _decoded(data, cv2.IMREAD_COLOR)
    return _to_edge_form(image, modality, path)


def _decoded(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _may_be_deep(data: bytes) -> bool:
    """Whether this may be a file of one channel of 16 bits or more: a gray PNG of 16 bits, any TIFF, any PGM."""
    return data[:4] in _TIFF or data[:2] == b"P5" or (data[:4] == b"\x89PNG" and data[24:26] == b"\x10\0")


def is_deep(path: Path) -> bool:
    """Whether a file holds one channel of more than 8 bits, as thermal and depth cameras write it."""
    with path.open("rb") as file:
        if not _may_be_deep(file.read(32)):
            return False
    image = _decoded(path.read_bytes(), _AS_STORED)
    return image is not None and image.ndim == 2 and image.dtype != np.uint8


def page_count(data: bytes) -> int:
    """How many pictures a TIFF file holds; 1 where it cannot be told."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return getattr(image, "n_frames", 1)
    except _DAMAGE:
        return 1


def read_pages(path: Path, modality: str) -> Iterator[np.ndarray]:
    """The pages of a TIFF file, one after the other, in the form of `read_image` and with its errors."""
    from PIL import Image, ImageSequence

    number = 0
    try:
        with Image.open(path) as file:
            for page in ImageSequence.Iterator(file):
                plain = page if page.mode in ("RGB", "L") or page.mode[0] in "IF" else page.convert("RGB")
                image = np.asarray(plain)
                image = image.astype(image.dtype.newbyteorder("="))
                image = image[..., ::-1] if image.ndim == 3 else image
                if modality == "rgb" and image.ndim == 2:
                    image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.dtype == np.uint8 else image
                yield _to_edge_form(image, modality, f"{path}, page {number + 1}")
                number += 1
    except _DAMAGE as error:
        raise ValueError(f"{path}, page {number + 1}, cannot be read ({error}): copy it again") from error


def _to_edge_form(image: np.ndarray, modality: str, path: str | Path | EncodedImage) -> np.ndarray:
    """OpenCV's picture -> the form promised by `read_image`."""
    if modality == "depth":
        if image.ndim == 2 and image.dtype in (np.uint8, np.float32):
            raise ValueError(f"{path}: a depth image has one channel of 16 bits, millimeters; this one has "
                             f"{image.dtype}. If its values are meters, store (image * 1000.0).astype(np.uint16) as "
                             "PNG; if another unit, multiply by that")
        if image.ndim != 2 or image.dtype != np.uint16:
            raise ValueError(f"{path}: a depth image has one channel of 16 bits, this one is "
                             f"{image.shape} {image.dtype}; a colored depth picture cannot be used")
        return image
    if modality == "thermal" and image.dtype == np.float32 and image.ndim == 2:
        return image
    if image.dtype not in ((np.uint8, np.uint16) if modality == "thermal" else (np.uint8,)):
        raise ValueError(f"{path}: pixels of type {image.dtype} cannot be used as {modality}; "
                         f"store it with 8 bits{' or 16 bits' if modality == 'thermal' else ''} per channel")
    if image.ndim == 2:
        return image
    if image.shape[2] not in (3, 4):
        raise ValueError(f"{path} has {image.shape[2]} channels: a picture has 1, 3 or 4")
    # many times as fast as a reversed copy
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGB)
