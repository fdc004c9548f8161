"""Opening of sequences and of sets; what lies where is in `layouts`."""

import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from mmtrackers.processing.frames import MODALITIES

from .annotations import read_boxes, read_flags, read_names
from .index import FileStamps, index_path, listed
from .layouts import DATASETS, LAYOUTS, DatasetRow, Layout, Split
from .pairing import paired
from .sequence import IMAGE_SUFFIXES, FrameFiles, Sequence, natural_names
from .sets import SequenceSet
from .special import Entry, packaged_list

logger = logging.getLogger(__name__)

__all__ = ["DATASETS", "LAYOUTS", "open_dataset", "open_sequence", "read_boxes"]


def open_sequence(folder: str | Path, modality: str | None = None, pair_by: str | None = None) -> Sequence:
    """Open a sequence folder; what lies in it decides which layout it has.

    Args:
        folder (`str` or `Path`): a sequence of a public set (see `layouts.LAYOUTS`); or images, or `rgb/` with
            `thermal/`, `depth/` or `event/` beside it, with or without `groundtruth.txt` (one `x,y,w,h` per frame, or
            one line for the first frame).
        modality (`str`, *optional*): the stream to use beside RGB, or "rgb" for RGB alone. By default whatever is
            there.
        pair_by (`str`, *optional*): "number" takes the frames that both streams have, "rank" pairs them by order
            alone. By default the numbers in their names must agree, but for a constant.

    Returns:
        [`Sequence`]: without annotation its boxes are NaN and `annotated` is False.

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
    _check_modality(modality)
    layout = _detect(folder)
    if layout is None:
        raise ValueError(_not_recognized(folder))
    return _read(_entry(folder), layout, modality, FileStamps(), pair_by)


def open_dataset(root: str | Path, names: str | Path | Iterable[str] | None = None, modality: str | None = None, *,
                 dataset: str | None = None, split: str | None = None, pair_by: str | None = None) -> SequenceSet:
    """Open a set of sequences: a public one by its name, or every annotated sequence below a folder.

    What a large set's folders hold is kept in an index file (see `index`): opened again, TrackingNet takes a second.

    Args:
        root (`str` or `Path`): the set's folder. Without `dataset` also one sequence, or a folder that holds sequences
            at most four levels down; each is recognized by what lies in it.
        names (`str`, `Path` or iterable of `str`, *optional*): the sequences to take, in this order: names, or a text
            file with one per line. By default all of the split.
        modality (`str`, *optional*): as in `open_sequence`.
        dataset (`str`, *optional*): key of `DATASETS`: "lasher", "rgbt234", "got10k", ... Says what would otherwise be
            guessed, and is needed for splits and for the sequences' attributes.
        split (`str`, *optional*): key of the set's splits; may be left out where there is only one.
        pair_by (`str`, *optional*): as in `open_sequence`.

    Returns:
        [`SequenceSet`]: a sequence of [`Sequence`], in the order of `names` or of the split's list, else sorted.

    Raises:
        ValueError: unknown set or split; no annotated sequence was found; a listed one is missing (named); one cannot
            be read.

    Example:
        >>> open_dataset("/nowhere")
        Traceback (most recent call last):
        ...
        ValueError: /nowhere is not a folder; expected a dataset or a sequence
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; expected a dataset or a sequence")
    _check_modality(modality)
    root = root.resolve()
    if isinstance(names, (str, Path)):
        names = read_names(names)
    names = None if names is None else list(names)
    if dataset is None:
        if split is not None:
            raise ValueError(f"split={split!r} needs dataset=..., one of {', '.join(DATASETS)}")
        return listed(index_path(root, names, modality, LAYOUTS, pair_by),
                      lambda stamps: _any(root, names, modality, stamps, pair_by))
    row, split = _row(dataset, split)
    return listed(index_path(root, names, modality, dataset, split, row, pair_by),
                  lambda stamps: _named(root, names, modality, dataset, split, stamps, pair_by))


def _check_modality(modality: str | None) -> None:
    if modality is not None and modality not in MODALITIES:
        raise ValueError(f"modality {modality!r}: expected one of {', '.join(MODALITIES)}")


def _row(dataset: str, split: str | None) -> tuple[DatasetRow, str]:
    if dataset not in DATASETS:
        raise ValueError(f"dataset {dataset!r}: expected one of {', '.join(DATASETS)}; leave it out for other folders")
    row = DATASETS[dataset]
    if split is None and len(row.splits) == 1:
        split = next(iter(row.splits))
    if split not in row.splits:
        raise ValueError(f"{row.title} has the splits {', '.join(row.splits)}; got split={split!r}")
    return row, split


def _any(root: Path, names: list[str] | None, modality: str | None, stamps: FileStamps, pair_by: str | None
         ) -> Iterator[Sequence]:
    bare: list[tuple[Path, Layout]] = []
    found = list(_walk(root, 4, stamps, bare))
    if not found:
        if bare:
            folder, layout = bare[0]
            more = f", nor have {len(bare) - 1} other folders" if len(bare) > 1 else ""
            files = " or ".join(os.path.relpath(folder / name.format(name=folder.name), root) for name in layout.boxes)
            raise ValueError(f"no annotated sequence below {root}: {folder} has frames ({layout.name}) and no "
                             f"annotation; expected {files}, a line x,y,width,height per frame{more}")
        raise ValueError(f"no annotated sequence below {root}. {EXPECTED}")
    if bare:
        shown = ", ".join(str(folder) for folder, _ in bare[:3]) + (" ..." if len(bare) > 3 else "")
        logger.warning("%d folders have frames and no annotation, and are left out: %s", len(bare), shown)
    if names is not None:
        found = _chosen(found, names, root)
    for entry, layout in found:
        yield _read(entry, layout, modality, stamps, pair_by)


def _chosen(found: list[tuple[Entry, Layout]], names: list[str], where: Path) -> list[tuple[Entry, Layout]]:
    by_name = {entry.name: (entry, layout) for entry, layout in found}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(f"{len(missing)} listed sequences are not below {where}: {', '.join(missing[:5])}")
    return [by_name[name] for name in names]


def _walk(folder: Path, depth: int, stamps: FileStamps, bare: list[tuple[Path, Layout]]
          ) -> Iterator[tuple[Entry, Layout]]:
    """The annotated sequences below a folder; `bare` gets those without an annotation."""
    stamps.add(folder)
    layout = _detect(folder)
    # Pictures without annotation are a sequence only where somebody points at them.
    if layout is not None and _first_file(folder, layout.boxes) is not None:
        yield _entry(folder), layout
        return
    if layout is not None:
        pictures = _images(_stream_folder(folder, layout.streams["rgb"]))
        if len(list(itertools.islice(pictures, 2))) == 2:
            bare.append((folder, layout))
    for child in _subfolders(folder) if depth > 0 else ():
        yield from _walk(child, depth - 1, stamps, bare if layout is None else [])


def sequences_below(root: Path) -> Iterator[tuple[Path, Layout, Callable[[], Sequence]]]:
    """Every folder with frames, its layout, and what opens it; for checks, which go on where `open_dataset` stops."""
    stamps, bare = FileStamps(), []
    for entry, layout in _walk(root, 4, stamps, bare):
        yield entry.folder, layout, partial(_read, entry, layout, None, stamps)
    for folder, layout in bare:
        yield folder, layout, partial(_read, _entry(folder), layout, None, stamps)


def annotation_of(folder: Path, layout: Layout) -> Path | None:
    """The box file of a sequence, if it is there."""
    return _first_file(folder, layout.boxes)


def _named(root: Path, names: list[str] | None, modality: str | None, dataset: str, split: str, stamps: FileStamps,
           pair_by: str | None) -> Iterator[Sequence]:
    row = DATASETS[dataset]
    attributes = {line.split()[0]: tuple(line.split()[1:]) for line in packaged_list(row.attributes)} \
        if row.attributes else {}
    if row.build is not None:
        sequences = row.build(root, split, stamps)
    else:
        found = _of_split(root, row, row.splits[split], split, stamps)
        if names is not None:
            found = _chosen(found, names, root)
        sequences = (_read(entry, layout, modality, stamps, pair_by) for entry, layout in found)
    for sequence in sequences:
        yield replace(sequence, layout=row.title, dataset=dataset, attributes=attributes.get(sequence.name, ()))


def _of_split(root: Path, row: DatasetRow, split: Split, name: str, stamps: FileStamps) -> list[tuple[Entry, Layout]]:
    """The sequences of a split: those in its folders that its lists name, or do not leave out."""
    found = _in_folders(root, row, split, stamps)
    folders_decide = _split_folders_exist(root, split)
    own_list = next((root / name for name in split.lists if (root / name).is_file()), None)
    wanted: list[str] | None = None
    without: set[str] = set()
    if own_list is not None:
        stamps.add(own_list)
        wanted = [name for name in read_names(own_list) if name not in split.drop]
    elif split.always or not folders_decide:
        if split.folders and not folders_decide and not split.names and len(row.splits) > 1:
            raise ValueError(f"{root} does not tell which sequences of {row.title} are {name!r}: expected "
                             f"{' or '.join((*split.folders, *split.lists))} there")
        without = set(_packaged_names(split, split.without))
        if split.names:
            wanted = [name for name in _packaged_names(split, split.names) if name not in without]
    kept = [pair for pair in found if pair[0].name not in without]
    if not kept:
        raise ValueError(f"none of the {len(found)} sequences below {root} is of {row.title}'s {name!r}")
    return kept if wanted is None else _chosen(kept, wanted, root)


def _split_folders(root: Path, split: Split) -> list[Path]:
    """The folders of a split below a set's root; the first pattern that fits decides."""
    return next((found for pattern in split.folders if (found := _glob(root, pattern))), [])


def _split_folders_exist(root: Path, split: Split) -> bool:
    """Whether the split has folders of its own, or the root is one of them."""
    return bool(_split_folders(root, split)) or any(root.match(pattern) for pattern in split.folders)


def _in_folders(root: Path, row: DatasetRow, split: Split, stamps: FileStamps) -> list[tuple[Entry, Layout]]:
    """All sequences in the folders of a split, or below the root where it has none."""
    stamps.add(root)
    folders = _split_folders(root, split) or [root]
    places = [place for folder in folders for place in _sequence_folders(folder, row, 3, stamps)]
    places = [place for place in places if not any(place.match(drop) for drop in split.drop)]
    entries = row.entries(places, stamps) if row.entries else map(_entry, places)
    found = [(entry, _layout_of(entry.folder, row)) for entry in entries]
    if not found:
        raise ValueError(f"no sequence of {row.title} below {root}. Expected {_forms(row, split)}")
    return found


def _packaged_names(split: Split, lists: tuple[str, ...]) -> list[str]:
    return [split.pattern.format(entry) for name in lists for entry in packaged_list(name)]


def _glob(root: Path, pattern: str) -> list[Path]:
    return [Path(path) for path in natural_names(str(path) for path in root.glob(pattern) if path.is_dir())]


def _sequence_folders(folder: Path, row: DatasetRow, depth: int, stamps: FileStamps) -> Iterator[Path]:
    """Folders that have anything of a sequence, so that one that lacks a part is an error and not left out."""
    stamps.add(folder)
    for child in _subfolders(folder):
        if any(_has_part(child, layout) for layout in row.layouts):
            yield child
        elif depth > 1:
            yield from _sequence_folders(child, row, depth - 1, stamps)


def _has_part(folder: Path, layout: Layout) -> bool:
    return (any(_stream_folder(folder, names) is not None for names in layout.streams.values())
            or _first_file(folder, layout.boxes) is not None)


def _layout_of(folder: Path, row: DatasetRow) -> Layout:
    return next((layout for layout in row.layouts if _has_part(folder, layout)), row.layouts[0])


def _forms(row: DatasetRow, split: Split) -> str:
    streams = " or ".join(" + ".join(f"<sequence>/{names[0]}/" for names in layout.streams.values())
                          for layout in row.layouts)
    return streams + (f" in {' or '.join(split.folders)}" if split.folders else "")


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return [folder / name for name in natural_names(names)]


def _entry(folder: Path) -> Entry:
    return Entry(folder.resolve().name, folder)


def _detect(folder: Path) -> Layout | None:
    return next((layout for layout in LAYOUTS if _fits(folder, layout)), None)


def _fits(folder: Path, layout: Layout) -> bool:
    if layout.required and _first_file(folder, layout.required) is None:
        return False
    return all(_stream_folder(folder, names) is not None for names in layout.streams.values())


def _stream_folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    for name in names:
        if not name and next(_images(folder), None) is not None:
            return folder
        if name and (place := folder / name.format(name=folder.name)).is_dir():
            return place
    return None


_ENDINGS = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)


def _images(folder: Path) -> Iterator[str]:
    return (name for name in os.listdir(folder) if name.rpartition(".")[2].lower() in _ENDINGS and name[0] != ".")


def _first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    paths = (Path(os.path.normpath(folder / name.format(name=folder.name))) for name in names)
    return next((path for path in paths if path.is_file()), None)


EXPECTED = ("Expected images in the folder itself, or one of: "
             + "; ".join(sorted({" + ".join(f"{names[0]}/" for names in layout.streams.values()).format(name="<name>")
                                 for layout in LAYOUTS if "" not in layout.streams["rgb"]}))
             + "; own folders may add thermal/, depth/ or event/ to rgb/")


def _not_recognized(folder: Path) -> str:
    for layout in LAYOUTS:
        streams = layout.streams | layout.optional
        there = [m for m, names in streams.items() if _stream_folder(folder, names) is not None]
        lacking = [m for m in layout.streams if m not in there]
        if there and lacking:
            names = layout.streams[lacking[0]]
            return (f"{folder} has the {there[0]} frames of a sequence ({layout.name}) but no {lacking[0]} frames: "
                    f"the folder {names[0]}/ is missing")
    return f"no sequence was recognized in {folder}. {EXPECTED}"


def _read(entry: Entry, layout: Layout, modality: str | None, stamps: FileStamps, pair_by: str | None = None
          ) -> Sequence:
    folder = entry.folder.resolve()
    stamps.add(folder)
    frames = {}
    for stream, names in (layout.streams | layout.optional).items():
        if modality is not None and stream not in ("rgb", modality):
            continue
        where = _stream_folder(folder, names)
        if where is not None:
            stamps.add(where)
            frames[stream] = where, _frame_names(entry, where)
        elif stream in layout.streams:
            raise ValueError(f"sequence {folder} has no {stream} frames: the folder "
                             f"{names[0].format(name=folder.name)}/ is missing")
    if modality is not None and modality not in frames:
        raise ValueError(f"sequence {folder} ({layout.name}) has no {modality} frames, only {', '.join(frames)}")

    path = entry.boxes or _first_file(folder, layout.boxes)
    rows = _rows(path, layout, entry, stamps)
    where, names = frames["rgb"]
    cut = layout.cut and 1 < len(rows) < len(names)
    names = names[: len(rows)] if cut else names
    count, kept = len(names), slice(None)
    if len(frames) == 2:
        stream = next(stream for stream in frames if stream != "rgb")
        place, others = frames[stream]
        try:
            kept, partners = paired(names, others, stream, pair_by, cut)
        except ValueError as error:
            raise ValueError(f"sequence {entry.name!r} in {folder}: {error}") from None
        frames[stream] = place, [others[i] for i in partners]
        names = [names[i] for i in kept]
    frames["rgb"] = where, names
    boxes, annotated = _place(path, rows, count, layout)
    present = annotated & np.isfinite(boxes).all(1)
    present[present] = (boxes[present, 2:] > 0).all(1)
    extras = {}
    for name in (*layout.flags, *layout.numbers):
        if (folder / name).is_file():
            stamps.add(folder / name)
            extras[Path(name).stem] = read_flags(folder / name, count).astype(np.float32)
            if name in layout.flags:
                present &= np.isin(extras[Path(name).stem], layout.flags[name])
    second = _first_file(folder, layout.second_boxes) if len(frames) == 2 else None
    second_boxes = None
    if second is not None:
        second_boxes = _place(second, _rows(second, layout, entry, stamps), len(others), layout)[0][partners]
    files = {stream: FrameFiles.of(where, names) for stream, (where, names) in frames.items()}
    return Sequence(entry.name, files, boxes[kept], present[kept], annotated[kept], second_boxes, layout.name,
                    layout.min_side, extras={name: numbers[kept] for name, numbers in extras.items()})


def _frame_names(entry: Entry, folder: Path) -> list[str]:
    """The names of an entry's frames in a folder, in order."""
    names = natural_names(_images(folder))
    if not names:
        raise ValueError(f"sequence {entry.name!r}: no images in {folder}")
    if entry.first:
        names = [name for name in names if int(re.findall(r"[0-9]+", name)[-1]) >= entry.first]
    return names[entry.skip :]


def _rows(path: Path | None, layout: Layout, entry: Entry, stamps: FileStamps) -> np.ndarray:
    if path is None:
        return np.empty((0, 4))
    stamps.add(path)
    return layout.read_boxes(path)[entry.skip :]


def _place(path: Path | None, rows: np.ndarray, count: int, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [count, 4] with NaN where there is no line, and which frames have one."""
    boxes, annotated = np.full((count, 4), np.nan), np.zeros(count, dtype=bool)
    if path is None:
        return boxes, annotated
    if len(rows) == count:
        at = slice(None)
    elif len(rows) == 1:
        at = slice(0, 1)
    else:
        step = next((step for step in layout.steps if len(rows) == -(-count // step)), None)
        if step is None:
            also = "".join(f", or one per {step} frames ({-(-count // step)})" for step in layout.steps)
            where = f"line {count + 1} is one too many" if len(rows) > count else f"it ends with line {len(rows)}"
            raise ValueError(f"{path} has {len(rows)} boxes for {count} frames ({where}): expected one per "
                             f"frame{also}, or a single one for the first frame")
        at = slice(None, None, step)
    boxes[at], annotated[at] = rows, True
    return boxes, annotated
