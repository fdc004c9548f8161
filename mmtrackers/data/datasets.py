"""Opening of sequences and of sets; what lies where is in `layouts`."""

import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmtrackers.processing.frames import check_modality

from .annotations import read_flags, read_names
from .index import FileStamps, index_path, listed
from .layouts import DATASETS, LAYOUTS, DatasetRow, Layout, Split
from .pairing import paired
from .sequence import IMAGE_SUFFIXES, FrameFiles, Sequence, natural_names
from .sets import SequenceSet
from .special import Entry, packaged_list

logger = logging.getLogger(__name__)

Named = TypeVar("Named", Entry, Sequence)


def open_sequence(folder: str | Path, modality: str | None = None, pair_by: str | None = None) -> Sequence:
    """Open a sequence folder; what lies in it decides which layout it has. Without annotation its boxes are NaN.

    Args:
        folder (`str` or `Path`): a sequence of a public set (see `layouts.LAYOUTS`); or images, or `rgb/` with
            `thermal/`, `depth/` or `event/` beside it, with or without `groundtruth.txt` (one `x,y,w,h` per frame, or
            one line for the first frame).
        modality (`str`, *optional*): the stream to use beside RGB, or "rgb" for RGB alone; by default what is there.
        pair_by (`str`, *optional*): "number" takes the frames that both streams have, "rank" pairs them by order
            alone. By default the numbers in their names must agree, but for a constant.

    Raises:
        ValueError: the folder or a stream is missing or empty, counts or frame numbers differ, or an annotation
            cannot be read; names the file and both counts.

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
    if modality is not None:
        check_modality(modality)
    entry = _recognized(folder)
    if entry is not None:
        return read_entry(entry, modality, pair_by, FileStamps())
    for layout in LAYOUTS:
        there = [m for m, names in (layout.streams | layout.optional).items() if _stream_folder(folder, names)]
        lacking = [m for m in layout.streams if m not in there]
        if there and lacking:
            raise ValueError(f"{folder} has the {there[0]} frames of a sequence ({layout.name}) but no {lacking[0]} "
                             f"frames: the folder {layout.streams[lacking[0]][0]}/ is missing")  # fmt: skip
    raise ValueError(f"no sequence was recognized in {folder}. {EXPECTED}")


def open_dataset(root: str | Path, names: str | Path | Iterable[str] | None = None, modality: str | None = None, *,
                 dataset: str | None = None, split: str | None = None, pair_by: str | None = None) -> SequenceSet:
    """Open a set of sequences: a public one by its name, or every annotated sequence below a folder.

    What a large set's folders hold is kept in an index file (see `index`): opened again, TrackingNet takes a second.

    Args:
        root (`str` or `Path`): the set's folder. Without `dataset` also one sequence, or a folder that holds sequences
            at most four levels down; each is recognized by what lies in it.
        names (`str`, `Path` or iterable of `str`, *optional*): the sequences to take, in this order: names, or a text
            file with one per line. By default all of the split, in its list's order, else sorted.
        modality, pair_by (`str`, *optional*): as in `open_sequence`.
        dataset (`str`, *optional*): key of `DATASETS` ("lasher", "got10k", ...), in place of a guess; needed for
            splits and for the sequences' attributes.
        split (`str`, *optional*): key of the set's splits; may be left out where there is only one.

    Raises:
        ValueError: unknown set or split; no annotated sequence; a listed one is missing; one cannot be read.

    Example:
        >>> open_dataset("/nowhere")
        Traceback (most recent call last):
        ...
        ValueError: /nowhere is not a folder; expected a dataset or a sequence
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; expected a dataset or a sequence")
    if modality is not None:
        check_modality(modality)
    root = root.resolve()
    if isinstance(names, (str, Path)):
        names = read_names(names)
    names = None if names is None else list(names)
    row, kind = None, (LAYOUTS,)
    if dataset is not None:
        if dataset not in DATASETS:
            raise ValueError(f"dataset {dataset!r}: expected one of {', '.join(DATASETS)}; leave it out for other "
                             "folders")  # fmt: skip
        row = DATASETS[dataset]
        if split is None and len(row.splits) == 1:
            [split] = row.splits
        if split not in row.splits:
            raise ValueError(f"{row.title} has the splits {', '.join(row.splits)}; got split={split!r}")
        if row.build is not None and modality not in (None, "rgb"):
            raise ValueError(f"{row.title} has no {modality} frames, only rgb")
        kind = (dataset, split, row)
    elif split is not None:
        raise ValueError(f"split={split!r} needs dataset=..., one of {', '.join(DATASETS)}")

    def listing(stamps: FileStamps) -> Iterator[Sequence]:
        if row is not None and row.build is not None:
            sequences = row.build(root, split, stamps)
            sequences = sequences if names is None else _chosen(sequences, names, root)
        else:
            entries = _below(root, stamps) if row is None else _of_split(root, row, split, stamps)
            entries = entries if names is None else _chosen(entries, names, root)
            sequences = (read_entry(entry, modality, pair_by, stamps) for entry in entries)
        if row is None:
            return sequences
        lines = [line.split() for line in packaged_list(row.attributes)] if row.attributes else []
        attributes = {name: tuple(values) for name, *values in lines}
        return (replace(sequence, layout=row.title, dataset=dataset, attributes=attributes.get(sequence.name, ()))
                for sequence in sequences)  # fmt: skip

    return listed(index_path(root, names, modality, *kind, pair_by), listing)


def _chosen(found: Iterable[Named], names: list[str], where: Path) -> list[Named]:
    by_name = {one.name: one for one in found}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(f"{len(missing)} listed sequences are not below {where}: {', '.join(missing[:5])}")
    return [by_name[name] for name in names]


def _below(root: Path, stamps: FileStamps) -> list[Entry]:
    """The annotated sequences below a folder; says which ones have no annotation."""
    bare: list[Entry] = []
    found = list(walk(root, stamps, bare))
    if not found and not bare:
        raise ValueError(f"no annotated sequence below {root}. {EXPECTED}")
    if not found:
        folder, layout = bare[0].folder, bare[0].layout
        more = f", nor have {len(bare) - 1} other folders" if len(bare) > 1 else ""
        files = " or ".join(os.path.relpath(folder / name.format(name=folder.name), root) for name in layout.boxes)
        raise ValueError(f"no annotated sequence below {root}: {folder} has frames ({layout.name}) and no annotation; "
                         f"expected {files}, a line x,y,width,height per frame{more}")
    if bare:
        shown = ", ".join(str(entry.folder) for entry in bare[:3]) + (" ..." if len(bare) > 3 else "")
        logger.warning("%d folders have frames and no annotation, and are left out: %s", len(bare), shown)
    return found


def walk(folder: Path, stamps: FileStamps, bare: list[Entry], depth: int = 4) -> Iterator[Entry]:
    """The annotated sequences at most four levels below a folder; `bare` gets those without an annotation."""
    stamps.add(folder)
    entry = _recognized(folder)
    if entry is not None:
        if first_file(folder, entry.layout.boxes) is not None:
            yield entry
            return
        # Pictures without annotation are a sequence only where somebody points at them.
        pictures = image_names(_stream_folder(folder, entry.layout.streams["rgb"]))
        if len(list(itertools.islice(pictures, 2))) == 2:
            bare.append(entry)
    for child in _subfolders(folder) if depth > 0 else ():
        yield from walk(child, stamps, bare if entry is None else [], depth - 1)


def _of_split(root: Path, row: DatasetRow, name: str, stamps: FileStamps) -> list[Entry]:
    """The sequences of a split: those in its folders that its lists name, or do not leave out."""
    split = row.splits[name]
    globbed = ([str(path) for path in root.glob(pattern) if path.is_dir()] for pattern in split.folders)
    folders = [Path(path) for path in natural_names(next(filter(None, globbed), []))]
    folders_decide = bool(folders) or any(root.match(pattern) for pattern in split.folders)
    stamps.add(root)
    found = [entry for folder in folders or [root] for entry in _with_any_part(folder, row, 3, stamps)
             if not any(entry.folder.match(drop) for drop in split.drop)]  # fmt: skip
    if row.entries is not None:
        found = list(row.entries(found, stamps))
    if not found:
        forms = " or ".join(" + ".join(f"<sequence>/{names[0]}/" for names in layout.streams.values())
                            for layout in row.layouts)  # fmt: skip
        where = f" in {' or '.join(split.folders)}" if split.folders else ""
        raise ValueError(f"no sequence of {row.title} below {root}. Expected {forms}{where}")
    wanted: list[str] | None = None
    without: set[str] = set()
    if (own_list := first_file(root, split.lists)) is not None:
        stamps.add(own_list)
        wanted = [name for name in read_names(own_list) if name not in split.drop]
    elif split.always or not folders_decide:
        if split.folders and not folders_decide and not split.names and len(row.splits) > 1:
            raise ValueError(f"{root} does not tell which sequences of {row.title} are {name!r}: expected "
                             f"{' or '.join((*split.folders, *split.lists))} there")
        without = set(_packaged_names(split, split.without))
        if split.names:
            wanted = [name for name in _packaged_names(split, split.names) if name not in without]
    kept = [entry for entry in found if entry.name not in without]
    if not kept:
        raise ValueError(f"none of the {len(found)} sequences below {root} is of {row.title}'s {name!r}")
    return kept if wanted is None else _chosen(kept, wanted, root)


def _with_any_part(folder: Path, row: DatasetRow, depth: int, stamps: FileStamps) -> Iterator[Entry]:
    """Folders that have anything of a sequence, so that one that lacks a part is an error and not left out."""
    stamps.add(folder)
    for child in _subfolders(folder):
        layout = next((layout for layout in row.layouts if first_file(child, layout.boxes) is not None
                       or any(_stream_folder(child, names) for names in layout.streams.values())), None)  # fmt: skip
        if layout is not None:
            yield Entry(child.resolve().name, child, layout)
        elif depth > 1:
            yield from _with_any_part(child, row, depth - 1, stamps)


def _packaged_names(split: Split, lists: tuple[str, ...]) -> list[str]:
    return [split.pattern.format(entry) for name in lists for entry in packaged_list(name)]


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return [folder / name for name in natural_names(names)]


def _recognized(folder: Path) -> Entry | None:
    """The sequence that a folder holds, in the first layout that fits."""
    for layout in LAYOUTS:
        required = not layout.required or first_file(folder, layout.required)
        if required and all(_stream_folder(folder, names) for names in layout.streams.values()):
            return Entry(folder.resolve().name, folder, layout)
    return None


def _stream_folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    for name in names:
        if not name and next(image_names(folder), None) is not None:
            return folder
        if name and (place := folder / name.format(name=folder.name)).is_dir():
            return place
    return None


def image_names(folder: Path) -> Iterator[str]:
    """The names of a folder's images, in no order; hidden files are none."""
    names = (name for name in os.listdir(folder) if not name.startswith("."))
    return (name for name in names if name[name.rfind(".") :].lower() in IMAGE_SUFFIXES)


def first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of several files of a layout that is there."""
    paths = (Path(os.path.normpath(folder / name.format(name=folder.name))) for name in names)
    return next((path for path in paths if path.is_file()), None)


EXPECTED = ("Expected images in the folder itself, or one of: "
             + "; ".join(sorted({" + ".join(f"{names[0]}/" for names in layout.streams.values()).format(name="<name>")
                                 for layout in LAYOUTS if "" not in layout.streams["rgb"]}))
             + "; own folders may add thermal/, depth/ or event/ to rgb/")


def read_entry(entry: Entry, modality: str | None, pair_by: str | None, stamps: FileStamps) -> Sequence:
    """The sequence of an entry: its streams paired, its annotation laid on the frames."""
    folder, layout = entry.folder.resolve(), entry.layout
    stamps.add(folder)
    streams: dict[str, tuple[Path, list[str]]] = {}
    for stream, names in (layout.streams | layout.optional).items():
        if modality is not None and stream not in ("rgb", modality):
            continue
        place = _stream_folder(folder, names)
        if place is not None:
            stamps.add(place)
            found = natural_names(image_names(place))
            if not found:
                raise ValueError(f"sequence {entry.name!r}: no images in {place}")
            if entry.first:
                found = [name for name in found if int(re.findall(r"[0-9]+", name)[-1]) >= entry.first]
            streams[stream] = place, found[entry.skip :]
        elif stream in layout.streams:
            raise ValueError(f"sequence {folder} has no {stream} frames: the folder "
                             f"{names[0].format(name=folder.name)}/ is missing")
    if modality is not None and modality not in streams:
        raise ValueError(f"sequence {folder} ({layout.name}) has no {modality} frames, only {', '.join(streams)}")

    path = entry.boxes or first_file(folder, layout.boxes)
    rows = _rows(path, entry, stamps)
    place, names = streams["rgb"]
    cut = layout.cut and 1 < len(rows) < len(names)
    names = names[: len(rows)] if cut else names
    count, kept, second_boxes = len(names), slice(None), None
    if len(streams) == 2:
        [stream] = streams.keys() - {"rgb"}
        other_place, others = streams[stream]
        try:
            kept, partners = paired(names, others, stream, pair_by, cut)
        except ValueError as error:
            raise ValueError(f"sequence {entry.name!r} in {folder}: {error}") from None
        if (second := first_file(folder, layout.second_boxes)) is not None:
            second_boxes = _on_frames(second, _rows(second, entry, stamps), len(others), layout)[0][partners]
        streams[stream] = other_place, [others[i] for i in partners]
        names = [names[i] for i in kept]
    streams["rgb"] = place, names
    boxes, annotated = _on_frames(path, rows, count, layout)
    present = annotated & np.isfinite(boxes).all(1)
    present[present] = (boxes[present, 2:] > 0).all(1)
    extras = {}
    for name in (*layout.flags, *layout.numbers):
        if (folder / name).is_file():
            stamps.add(folder / name)
            flags = read_flags(folder / name, count).astype(np.float32)
            extras[Path(name).stem] = flags[kept]
            if name in layout.flags:
                present &= np.isin(flags, layout.flags[name])
    files = {stream: FrameFiles.of(place, names) for stream, (place, names) in streams.items()}
    return Sequence(entry.name, files, boxes[kept], present[kept], annotated[kept], second_boxes, layout.name,
                    layout.min_side, extras=extras)  # fmt: skip


def _rows(path: Path | None, entry: Entry, stamps: FileStamps) -> np.ndarray:
    if path is None:
        return np.empty((0, 4))
    stamps.add(path)
    return entry.layout.parse(path)[entry.skip :]


def _on_frames(path: Path | None, rows: np.ndarray, count: int, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [count, 4] with NaN where there is no line, and which frames have one."""
    boxes, annotated = np.full((count, 4), np.nan), np.zeros(count, dtype=bool)
    if path is None:
        return boxes, annotated
    # one line is the first frame's
    step = next((step for step in (1, *layout.steps, count or 1) if len(rows) == -(-count // step)), None)
    if step is None:
        also = "".join(f", or one per {step} frames ({-(-count // step)})" for step in layout.steps)
        where = f"line {count + 1} is one too many" if len(rows) > count else f"it ends with line {len(rows)}"
        raise ValueError(f"{path} has {len(rows)} boxes for {count} frames ({where}): expected one per frame{also}, "
                         "or a single one for the first frame")
    boxes[::step], annotated[::step] = rows, True
    return boxes, annotated
