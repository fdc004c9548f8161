"""How the public sets lie on disk: one table, one reader.

Layouts, delimiters and the polarity of the absence flags are those of the sets as distributed, cross-checked with the
readers in jiawen-zhu/ViPT (LasHeR, VisEvent, DepthTrack), visionml/pytracking (LaSOT, OTB) and got-10k/toolkit.
A new set is one more row of `LAYOUTS`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .sequence import IMAGE_SUFFIXES, MODALITIES, Sequence, natural_order


@dataclass(frozen=True)
class Layout:
    """One form in which a sequence may lie on disk. Names are relative to the sequence's folder.

    Args:
        name (`str`): the sets that have this form.
        streams (`dict[str, tuple[str, ...]]`): modality -> its folder, with alternatives; "" = the sequence's folder
            itself. All of them must exist for the layout to be recognised. Images of any kind count, sorted naturally.
        optional (`dict[str, tuple[str, ...]]`): streams that may be there as well.
        boxes, second_boxes (`tuple[str, ...]`): annotation files of the RGB and of the second stream; the first that
            exists is read. Numbers may be parted by comma, tab, space or semicolon.
        required (`tuple[str, ...]`): files of which one must exist for the layout to be recognised.
        corners (`bool`): rows of four numbers are two opposite corners (in any order), not x, y, w, h.
        flags (`dict[str, int]`): presence files -> the value that means **present**; files that lack are skipped.
        steps (`tuple[int, ...]`): permitted distances between annotated frames, beside one line per frame.
        min_side (`float`): pixels; boxes with a smaller side are not trained on.
    """

    name: str
    streams: dict[str, tuple[str, ...]]
    optional: dict[str, tuple[str, ...]] = field(default_factory=dict)
    boxes: tuple[str, ...] = ("groundtruth.txt",)
    second_boxes: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    corners: bool = False
    flags: dict[str, int] = field(default_factory=dict)
    steps: tuple[int, ...] = ()
    min_side: float = 0.0


_OWN_BOXES = ("groundtruth.txt", "groundtruth_rect.txt", "init.txt")

# The first row that fits is taken: the particular ones stand before the general ones.
LAYOUTS: tuple[Layout, ...] = (
    Layout("LasHeR, RGBT234, RGBT210", {"rgb": ("visible",), "thermal": ("infrared",)},
           boxes=("visible.txt", "init.txt"), second_boxes=("infrared.txt",)),
    Layout("VTUAV", {"rgb": ("rgb",), "thermal": ("ir", "ir_gray")}, boxes=("rgb.txt", "groundtruth.txt"),
           second_boxes=("ir.txt", "ir_gray.txt"), steps=(10,)),
    Layout("GTOT", {"rgb": ("v",), "thermal": ("i",)}, boxes=("groundTruth_v.txt",),
           second_boxes=("groundTruth_i.txt",), corners=True),
    Layout("VisEvent", {"rgb": ("vis_imgs",), "event": ("event_imgs",)}, flags={"absent_label.txt": 1}, min_side=5.0),
    Layout("DepthTrack, CDTB, VOT-RGBD", {"rgb": ("color",), "depth": ("depth",)}, min_side=10.0),
    Layout("VOT-RGBT", {"rgb": ("color",), "thermal": ("ir",)}),
    Layout("VOT", {"rgb": ("color",)}),
    Layout("LaSOT", {"rgb": ("img",)}, required=("groundtruth.txt",),
           flags={"full_occlusion.txt": 0, "out_of_view.txt": 0}),
    Layout("OTB", {"rgb": ("img",)}, boxes=("groundtruth_rect.txt", "groundtruth_rect.1.txt"),
           required=("groundtruth_rect.txt", "groundtruth_rect.1.txt")),
    Layout("GOT-10k", {"rgb": ("",)}, required=("absence.label", "cover.label"), flags={"absence.label": 0}),
    Layout("own folders", {"rgb": ("rgb",)}, boxes=_OWN_BOXES,
           optional={"thermal": ("thermal",), "depth": ("depth",), "event": ("event",)}),
    Layout("own folder", {"rgb": ("",)}, boxes=_OWN_BOXES),
)


def open_sequence(folder: str | Path, modality: str | None = None) -> Sequence:
    """Open a sequence folder; what lies in it decides which layout it has.

    Args:
        folder (`str` or `Path`): a sequence of LasHeR, RGBT234, VTUAV, GTOT, VisEvent, DepthTrack, VOT, GOT-10k, LaSOT
            or OTB; or images, or `rgb/` with `thermal/`, `depth/` or `event/` beside it, with or without
            `groundtruth.txt` (one `x,y,w,h` per frame, or one line for the first frame).
        modality (`str`, *optional*): the stream to use beside RGB, or "rgb" for RGB alone. By default whatever is
            there.

    Returns:
        [`Sequence`]: without annotation its boxes are NaN and `annotated` is False.

    Raises:
        ValueError: the folder or a stream is missing or empty, counts differ, or an annotation cannot be read; names
            the file and both counts.

    Example:
        >>> import tempfile, cv2
        >>> folder = Path(tempfile.mkdtemp())
        >>> for k in (1, 2):
        ...     _ = cv2.imwrite(str(folder / f"{k}.png"), np.zeros((8, 8, 3), np.uint8))
        >>> _ = (folder / "groundtruth.txt").write_text("1,2,3,4\\n2,2,3,4\\n")
        >>> sequence = open_sequence(folder)
        >>> sequence.layout, len(sequence), sequence.boxes_xywh[1].tolist()
        ('own folder', 2, [2.0, 2.0, 3.0, 4.0])
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected the folder of one sequence")
    if modality is not None and modality not in MODALITIES:
        raise ValueError(f"modality {modality!r}: expected one of {', '.join(MODALITIES)}")
    layout = _detect(folder)
    if layout is None:
        raise ValueError(_not_recognised(folder))
    return _read(folder, layout, modality)


def open_dataset(root: str | Path, names: str | Path | Iterable[str] | None = None,
                 modality: str | None = None) -> list[Sequence]:
    """Open every annotated sequence below a folder.

    Args:
        root (`str` or `Path`): a sequence, or a folder that holds sequences at most four levels down.
        names (`str`, `Path` or iterable of `str`, *optional*): the sequences to take, in this order: names, or a text
            file with one per line (a split list). By default all, sorted.
        modality (`str`, *optional*): as in `open_sequence`.

    Returns:
        `list[Sequence]`: sorted by path, or in the order of `names`.

    Raises:
        ValueError: no annotated sequence was found, a listed one is missing (named), or one cannot be read.

    Example:
        >>> open_dataset("/nowhere")
        Traceback (most recent call last):
        ...
        ValueError: /nowhere is not a folder; expected a dataset or a sequence
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; expected a dataset or a sequence")
    found = list(_walk(root, depth=4))
    if names is not None:
        if isinstance(names, (str, Path)):
            names = [line.strip() for line in Path(names).read_text().splitlines() if line.strip()]
        by_name = {folder.name: (folder, layout) for folder, layout in found}
        missing = [name for name in names if name not in by_name]
        if missing:
            raise ValueError(f"{len(missing)} listed sequences are not below {root}: {', '.join(missing[:5])}")
        found = [by_name[name] for name in names]
    if not found:
        raise ValueError(f"no annotated sequence below {root}. {_EXPECTED}")
    return [_read(folder, layout, modality) for folder, layout in found]


def _walk(folder: Path, depth: int) -> Iterable[tuple[Path, Layout]]:
    layout = _detect(folder)
    # Pictures without annotation are a sequence only where somebody points at them.
    if layout is not None and _first_file(folder, layout.boxes) is not None:
        yield folder, layout
    elif depth > 0:
        for child in natural_order(entry for entry in folder.iterdir() if entry.is_dir()):
            yield from _walk(child, depth - 1)


def _detect(folder: Path) -> Layout | None:
    return next((layout for layout in LAYOUTS if _fits(folder, layout)), None)


def _fits(folder: Path, layout: Layout) -> bool:
    if layout.required and _first_file(folder, layout.required) is None:
        return False
    return all(_stream_folder(folder, names) is not None for names in layout.streams.values())


def _stream_folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    for name in names:
        if name and (folder / name).is_dir():
            return folder / name
        if not name and any(_is_image(entry) for entry in folder.iterdir()):
            return folder
    return None


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


_EXPECTED = ("Expected images in the folder itself, or one of: "
             + "; ".join(sorted({" + ".join(f"{names[0]}/" for names in layout.streams.values())
                                 for layout in LAYOUTS if "" not in layout.streams["rgb"]}))
             + "; own folders may add thermal/, depth/ or event/ to rgb/")


def _not_recognised(folder: Path) -> str:
    for layout in LAYOUTS:
        streams = layout.streams | layout.optional
        there = [m for m, names in streams.items() if _stream_folder(folder, names) is not None]
        lacking = [m for m in layout.streams if m not in there]
        if there and lacking:
            names = layout.streams[lacking[0]]
            return (f"{folder} has the {there[0]} frames of a sequence ({layout.name}) but no {lacking[0]} frames: "
                    f"the folder {names[0]}/ is missing")
    return f"no sequence was recognised in {folder}. {_EXPECTED}"


def _read(folder: Path, layout: Layout, modality: str | None) -> Sequence:
    folder = folder.resolve()
    frames = {}
    for stream, names in (layout.streams | layout.optional).items():
        if modality is not None and stream not in ("rgb", modality):
            continue
        where = _stream_folder(folder, names)
        if where is None:
            continue
        frames[stream] = natural_order(path for path in where.iterdir() if _is_image(path))
        if not frames[stream]:
            raise ValueError(f"sequence {folder.name!r}: no images in {where}")
    if modality is not None and modality not in frames:
        raise ValueError(f"sequence {folder} ({layout.name}) has no {modality} frames, only {', '.join(frames)}")

    count = len(frames["rgb"])
    boxes, annotated = _place(_first_file(folder, layout.boxes), count, layout)
    second = _first_file(folder, layout.second_boxes) if len(frames) > 1 else None
    present = annotated & np.isfinite(boxes).all(1)
    present[present] = (boxes[present, 2:] > 0).all(1)
    for name, value in layout.flags.items():
        if (folder / name).is_file():
            present &= _read_flags(folder / name, count) == value
    return Sequence(folder.name, frames, boxes, present, annotated,
                    _place(second, count, layout)[0] if second else None, layout.name, layout.min_side)


def _place(path: Path | None, count: int, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [count, 4] with NaN where there is no line, and which frames have one."""
    boxes, annotated = np.full((count, 4), np.nan), np.zeros(count, dtype=bool)
    if path is None:
        return boxes, annotated
    rows = read_boxes(path, layout.corners)
    if len(rows) == count:
        at = slice(None)
    elif len(rows) == 1:
        at = slice(0, 1)
    else:
        step = next((step for step in layout.steps if len(rows) == -(-count // step)), None)
        if step is None:
            also = "".join(f", or one per {step} frames ({-(-count // step)})" for step in layout.steps)
            raise ValueError(f"{path} has {len(rows)} boxes for {count} frames: expected one per frame{also}, "
                             "or a single one for the first frame")
        at = slice(None, None, step)
    boxes[at], annotated[at] = rows, True
    return boxes, annotated


def read_boxes(path: str | Path, corners: bool = False) -> np.ndarray:
    """Read a box file: rectangles, polygons or corner pairs, one per line.

    Args:
        path (`str` or `Path`): text; numbers parted by comma, tab, space or semicolon. Four numbers are x, y, w, h;
            six or more are a polygon, of which the upright bounds are taken; a single number (VOT's special code) or
            NaN means no box.
        corners (`bool`): four numbers are two opposite corners instead.

    Returns:
        `np.ndarray`: [N, 4] float64 x, y, w, h; NaN rows where there is no box.

    Raises:
        ValueError: a line that is neither; names file and line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "groundtruth.txt"
        >>> _ = file.write_text("1,2,3,4\\n0 0 4 1 3 6 -1 5\\nnan,nan,nan,nan\\n")
        >>> read_boxes(file).tolist()
        [[1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 5.0, 6.0], [nan, nan, nan, nan]]
    """
    rows = []
    for number, values in _read_numbers(path):
        if len(values) == 1 or np.isnan(values).any():
            rows.append([np.nan] * 4)
        elif len(values) == 4 and not corners:
            rows.append(values)
        elif len(values) >= 4 and len(values) % 2 == 0:
            xs, ys = values[0::2], values[1::2]
            rows.append([min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)])
        else:
            raise ValueError(f"{path}, line {number}: {len(values)} numbers; expected 4 (a box) or an even "
                             "number from 6 on (a polygon)")
    return np.asarray(rows, dtype=np.float64).reshape(-1, 4)


def _read_flags(path: Path, count: int) -> np.ndarray:
    flags = np.array([value for _, values in _read_numbers(path) for value in values])
    if len(flags) != count:
        raise ValueError(f"{path} has {len(flags)} flags for {count} frames: expected one per frame")
    return flags


def _read_numbers(path: str | Path) -> list[tuple[int, list[float]]]:
    """(line number, numbers) of every line that is not blank."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        tokens = [token for token in re.split(r"[,;\s]+", line) if token]
        if not tokens:
            continue
        try:
            rows.append((number, [float(token) for token in tokens]))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {line.strip()[:60]!r} is not a row of numbers") from error
    return rows
