"""Raw results on disk: a tracker's boxes for every sequence of a set, in the set's own files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mmtrackers.data.annotations import read_boxes
from mmtrackers.processing.files import write_text

from . import metrics
from .one_pass import OnePass
from .protocols import get_protocol, score
from .results import EvaluationResult
from .scoring import Protocol, RawResult, Truth
from .vot_scoring import MultiStart

Form = Literal["xywh", "xyxy"]
# Stands for a frame that a partial result lacks: it overlaps nothing, and no rule repairs it.
NOWHERE = (1e6, 1e6, 1.0, 1.0)


@dataclass(eq=False)
class RawFolder:
    """The results of one tracker for a list of sequences, as far as they are there.

    Args:
        truths (list of [`Truth`]), results (list of [`RawResult`]): of the sequences that have a result.
        files (`list[Path]`): of each.
        notes (`dict[str, list[str]]`): sequence -> what was noticed in its file.
        partial (`set[str]`): sequences whose result was too short and is filled with misses.
        missing (`list[str]`): sequences without a result.
        general (`list[str]`): what concerns the folder as a whole.
    """

    truths: list[Truth] = field(default_factory=list)
    results: list[RawResult] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    general: list[str] = field(default_factory=list)


def result_file(folder: str | Path, name: str, protocol: Protocol, anchor: int | None = None) -> Path:
    """Where the raw result of a sequence belongs, in the layout of the set's toolkit.

    Example:
        >>> str(result_file("out", "tree", get_protocol("lasher")))
        'out/tree.txt'
        >>> str(result_file("out", "tree", get_protocol("vot22rgbd"), anchor=50))
        'out/tree/tree_00000050.txt'
    """
    if protocol.files == "lines":
        return Path(folder) / f"{name}.txt"
    return Path(folder) / name / (f"{name}_{anchor:08d}.txt" if protocol.files == "anchors" else f"{name}_001.txt")


def write_result(folder: str | Path, name: str, protocol: Protocol, result: RawResult) -> Path:
    """Writes a sequence's raw result in the layout of the set's toolkit: `x,y,w,h` with 4 decimals per frame.

    Files of the VOT toolkit begin with the code 1 (initialization) and have the confidences beside them, in
    `<name>_001_confidence.value`. Every file is written whole or not at all, confidences before boxes.

    Returns:
        `Path`: the file of the boxes (of the last run, for multi-start sets).
    """
    runs = result.runs if protocol.files == "anchors" else {None: result.boxes_xywh}
    for anchor, boxes in runs.items():
        path = result_file(folder, name, protocol, anchor)
        lines = [",".join(f"{value:.4f}" for value in row) for row in boxes.tolist()]
        if protocol.files in ("vot", "anchors"):
            lines[0] = "1"
            if result.confidence is not None:
                values = ["", *(f"{value:.6f}" for value in result.confidence[1:])]
                write_text(_confidence_file(path), "\n".join(values) + "\n")
        write_text(path, "\n".join(lines) + "\n")
    return path


def _confidence_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}_confidence.value")


def score_folder(
    folder: str | Path,
    truths: Sequence[Truth],
    protocol: Protocol | str,
    tracker: str | None = None,
    form: Form = "xywh",
    partial: bool = False,
) -> EvaluationResult:
    """Scores the raw results of any tracker, in the layout that the set's toolkit reads.

    Args:
        folder (`str` or `Path`): one file per sequence: `<name>.txt`, `<name>/<name>_001.txt` or, for multi-start
            sets, `<name>/<name>_<anchor>.txt`; VOT's `.bin` too. Numbers parted by comma, tab or space; 4 numbers
            per line, or 8 (four corners).
        truths (list of [`Truth`]): the set's sequences.
        protocol (`Protocol` or `str`): the rules.
        tracker (`str`, *optional*): its name; the folder's by default.
        form (`str`): what four numbers are: "xywh", or "xyxy" (two corners, with w = x2 - x1).
        partial (`bool`): score what is there, where sequences or frames are missing. Missing frames are misses; the
            result is marked.

    Raises:
        ValueError: no result at all; a missing sequence or a short result without `partial`; a line that cannot be
            used. Names the file and the line.

    Example:
        ```python
        truths = [truth_of(sequence) for sequence in open_dataset(root, dataset="lasher", split="test")]
        print(score_folder("results/lasher/vipt", truths, "lasher").scores)
        ```
    """
    protocol = get_protocol(protocol)
    raw = read_folder(folder, truths, protocol, form, partial)
    return score_raw(raw, protocol, tracker or Path(folder).resolve().name)


def score_raw(raw: RawFolder, protocol: Protocol, tracker: str, **about: object) -> EvaluationResult:
    """Scores results that were read, and marks what was noticed while reading them."""
    incomplete = bool(raw.missing or raw.partial)
    result = score(protocol, raw.truths, raw.results, tracker, **about)
    sequences = tuple(
        replace(row, partial=row.name in raw.partial, notes=tuple(raw.notes.get(row.name, ())), file=str(file))
        for row, file in zip(result.sequences, raw.files, strict=True)
    )
    notes = (*result.notes, *raw.general)
    return replace(result, sequences=sequences, partial=incomplete, missing=tuple(raw.missing), notes=notes)


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError where two sequences share a name, and so would share a file."""
    twice = sorted({name for name, count in Counter(names).items() if count > 1})
    if twice:
        raise ValueError(f"{len(twice)} names stand for several sequences: {', '.join(twice[:5])}. Results are files "
                         "of these names: rename the folders, or evaluate their parents apart")


def read_folder(
    folder: str | Path, truths: Sequence[Truth], protocol: Protocol, form: Form = "xywh", partial: bool = False
) -> RawFolder:
    """Reads and checks the raw results of a tracker; arguments and errors as `score_folder`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} of raw results")
    check_names([truth.name for truth in truths])
    raw, off_by_one = RawFolder(), []
    for truth in truths:
        file = _found(folder, truth, protocol)
        if file is None:
            raw.missing.append(truth.name)
            continue
        notes: list[str] = []
        if isinstance(protocol, MultiStart):
            result = _read_runs(file, truth, protocol, notes, raw.partial, partial)
        else:
            result = _read_one(file, truth, protocol, form, notes, raw.partial, partial)
            off_by_one += [file] if _check_first(file, truth, result, form, notes) else []
        raw.truths.append(truth)
        raw.results.append(result)
        raw.files.append(file)
        if notes:
            raw.notes[truth.name] = notes
    _check_whole(folder, raw, protocol, partial)
    if off_by_one:
        raw.general.append(_about_bases(off_by_one, len(raw.files)))
    return raw


def _found(folder: Path, truth: Truth, protocol: Protocol) -> Path | None:
    name = truth.name
    if isinstance(protocol, MultiStart):
        anchors = [f"{name}_{anchor:08d}" for anchor in truth.runs]
        places = [folder / name / anchors[0], folder / anchors[0]]
    else:
        places = [folder / name / f"{name}_001", folder / name]
        places = places if protocol.files != "lines" else places[::-1]
    files = [place.with_name(f"{place.name}{suffix}") for place in places for suffix in (".txt", ".bin")]
    return next((file for file in files if file.is_file()), None)


def _check_whole(folder: Path, raw: RawFolder, protocol: Protocol, partial: bool) -> None:
    if not raw.files:
        seen = sorted(path.name for path in folder.iterdir())[:3]
        example = result_file(folder, raw.missing[0] if raw.missing else "NAME", protocol, 0)
        there = f"; there is {', '.join(seen)}" if seen else ": the folder is empty"
        raise ValueError(f"no result of a sequence of {protocol.title} in {folder}: expected {example}{there}")
    if raw.missing and not partial:
        shown = ", ".join(raw.missing[:5]) + (" ..." if len(raw.missing) > 5 else "")
        raise ValueError(
            f"{folder} lacks {len(raw.missing)} of {len(raw.missing) + len(raw.files)} sequences: {shown}. "
            "Scores of a part are no scores of the set; --partial (partial=True) computes and marks them all the same"
        )
    used = {file.resolve() for file in raw.files}
    if protocol.files == "lines":
        others = [p.name for p in sorted(folder.glob("*.txt")) if p.resolve() not in used and "time" not in p.stem]
        if others:
            more = " ..." if len(others) > 5 else ""
            raw.general.append(f"{len(others)} files of no listed sequence: {', '.join(others[:5])}{more}")


def _rows(file: Path, protocol: Protocol, form: Form) -> np.ndarray:
    rows = read_boxes(file)
    if form == "xyxy" and protocol.files not in ("vot", "anchors"):
        rows = np.concatenate([rows[:, :2], rows[:, 2:] - rows[:, :2]], axis=1)
    if len(rows) == 0:
        raise ValueError(f"{file} holds no box")
    infinite = np.isinf(rows).any(1)
    if infinite.any():
        raise ValueError(f"{file}, line {int(np.argmax(infinite)) + 1}: a box with an infinite number")
    return rows


def _fitted(
    file: Path, rows: np.ndarray, truth: Truth, count: int, notes: list[str], short: set[str], partial: bool
) -> np.ndarray:
    """Exactly `count` rows: a longer result is cut, a shorter one is an error or filled with misses."""
    if len(rows) > count:
        notes.append(f"{file}: {len(rows)} lines for {count} frames; those from line {count + 1} on are left out")
    if len(rows) < count:
        if not partial:
            raise ValueError(
                f"{file} ends at line {len(rows)}, but {truth.name!r} has {count} frames: run it to its end, or score "
                "what is there with --partial (partial=True), where the missing frames are misses"
            )
        notes.append(f"{file}: ends at line {len(rows)} of {count}; the missing frames are misses")
        short.add(truth.name)
        rows = np.concatenate([rows, np.tile(NOWHERE, (count - len(rows), 1))])
    return rows[:count]


def _read_one(
    file: Path, truth: Truth, protocol: Protocol, form: Form, notes: list[str], short: set[str], partial: bool
) -> RawResult:
    rows = _rows(file, protocol, form)
    lead = int(np.argmax(truth.visible)) if truth.visible is not None and truth.visible.any() else 0
    if isinstance(protocol, OnePass) and protocol.padded_in_front and 0 < lead == len(truth) - len(rows):
        notes.append(f"{file}: begins at frame {lead}, the first with the target; padded in front")
        rows = np.concatenate([np.tile(rows[0], (lead, 1)), rows])
    given = len(rows)
    rows = _fitted(file, rows, truth, len(truth), notes, short, partial)
    if isinstance(protocol, OnePass):
        _check_broken(file, rows, protocol, notes)
        return RawResult(rows)
    confidence = None
    values_file = _confidence_file(file)
    if values_file.is_file():
        confidence = _read_confidence(values_file, given)
        confidence = np.concatenate([confidence, np.zeros(max(0, len(truth) - given))])[: len(truth)]
    else:
        notes.append(f"no {values_file.name} beside {file}: every confidence counts as 0, which leaves one threshold")
    return RawResult(rows, confidence)


def _read_runs(
    file: Path, truth: Truth, protocol: MultiStart, notes: list[str], short: set[str], partial: bool
) -> RawResult:
    runs = {}
    for anchor, frames in truth.runs.items():
        path = file.with_name(f"{truth.name}_{anchor:08d}{file.suffix}")
        if not path.is_file():
            raise ValueError(f"{path} is missing: {truth.name!r} has a run from frame {anchor}")
        rows = _rows(path, protocol, "xywh")
        runs[anchor] = _fitted(path, rows, truth, len(frames), notes, short, partial)
    return RawResult(runs=runs)


def _read_confidence(file: Path, count: int) -> np.ndarray:
    values = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        try:
            values.append(float(line) if line.strip() else np.nan)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {line.strip()[:60]!r} is not a number") from error
    if len(values) == count - 1:  # the first frame has none, and some write no empty line for it
        values.insert(0, np.nan)
    if len(values) != count:
        raise ValueError(f"{file} has {len(values)} lines, but its boxes have {count}")
    return np.array(values)


def _check_broken(file: Path, rows: np.ndarray, protocol: OnePass, notes: list[str]) -> None:
    """Boxes that are none: what the protocol makes of them is said, or it is an error."""
    with np.errstate(invalid="ignore"):
        missing, negative, empty = np.isnan(rows).any(1), (rows[:, 2:] < 0).any(1), (rows[:, 2:] == 0).any(1)
    broken = missing | negative | (empty if protocol.repair != "none" else False)
    broken[0] &= protocol.first_frame == "kept"
    if not broken.any():
        return
    line = int(np.argmax(broken)) + 1
    what = f"{file}, line {line}: {rows[line - 1].tolist()} is no box"
    others = f" ({int(broken.sum())} such lines)" if broken.sum() > 1 else ""
    if protocol.repair == "zero side" and (missing | negative).any():
        line = int(np.argmax(missing | negative)) + 1
        raise ValueError(f"{file}, line {line}: {rows[line - 1].tolist()}; {protocol.title} takes no NaN and no "
                         "negative side")  # fmt: skip
    then = "counts as a miss" if protocol.repair == "none" else "takes the box before it"
    notes.append(f"{what} and {then}{others}")


def _check_first(file: Path, truth: Truth, result: RawResult, form: Form, notes: list[str]) -> bool:
    """Whether the first box is the ground truth's but for one pixel; says so where it is quite another one."""
    at = int(np.argmax(truth.visible)) if truth.visible is not None and truth.visible.any() else 0
    given, first = truth.boxes_xywh[at : at + 1], result.boxes_xywh[at : at + 1]
    if np.isnan(given).any() or np.isnan(first).any():
        return False
    change = (first - given)[0]
    if np.allclose(change[2:], 0, atol=1e-3) and np.allclose(np.abs(change[:2]), 1, atol=1e-3):
        return bool(change[0] == change[1])
    if metrics.overlaps(given, first)[0] < 0.5:
        other = np.concatenate([first[:, :2], first[:, 2:] - first[:, :2]], axis=1)
        if form == "xywh" and metrics.overlaps(given, other)[0] > 0.9:
            raise ValueError(f"{file}, line {at + 1}: {first[0].tolist()} is the ground truth's box as two corners: "
                             "say so with --form xyxy (form=\"xyxy\")")  # fmt: skip
        notes.append(f"{file}, line {at + 1}: {first[0].tolist()} is not the box of the ground truth, "
                     f"{given[0].tolist()}: is it this sequence's file?")  # fmt: skip
    return False


def _about_bases(files: list[Path], count: int) -> str:
    shown = ", ".join(map(str, files[:3])) + (" ..." if len(files) > 3 else "")
    mixed = "mixed pixel bases: " if len(files) < count else ""
    return (f"{mixed}line 1 of {len(files)} of {count} results is the ground truth's box moved by one pixel, as if "
            f"pixels were counted from another number ({shown}). Scored as they are: the toolkits shift nothing")


