"""What lies on disk: the ground truth of sequences, and raw results, a tracker's boxes in the set's own files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mmtrackers.data.annotations import read_boxes
from mmtrackers.data.layouts import LAYOUTS
from mmtrackers.data.sequence import Sequence as VideoSequence
from mmtrackers.data.sequence import read_image
from mmtrackers.processing.boxes import xyxy_to_xywh
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
# GOT-10k's `absence.label` is not among them: its toolkit counts by `cover.label`
_THERE = {Path(file).stem: there for layout in LAYOUTS for file, there in layout.flags.items()
          if file != "absence.label"}  # fmt: skip


def truth_of(sequence: VideoSequence, protocol: Protocol | str) -> Truth:
    """What a protocol (or one of that name) needs to know of a sequence; the size of its frames is read where the
    rules need it. ValueError where there is no ground truth, or the first image cannot be read."""
    protocol = get_protocol(protocol)
    if not np.isfinite(sequence.boxes_xywh).all(1).any():
        raise ValueError(f"sequence {sequence.name!r} has no ground truth, not even of its first frame")
    sized = not isinstance(protocol, OnePass) or protocol.clip
    size = read_image(sequence.frames["rgb"][0]).shape[1::-1] if sized else None
    # from the set's own flags alone, whatever the boxes say
    flags = [np.isin(values, _THERE[name]) for name, values in sequence.extras.items() if name in _THERE]
    return Truth(
        sequence.name, sequence.boxes_xywh, np.logical_and.reduce(flags) if flags else None, sequence.annotated,
        sequence.second_boxes_xywh, size, sequence.extras.get("anchor"), sequence.attributes,
    )  # fmt: skip


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


def write_result(folder: str | Path, name: str, protocol: Protocol, result: RawResult) -> None:
    """Writes a sequence's raw result in the layout of the set's toolkit: `x,y,w,h` with 4 decimals per frame. VOT's
    files begin with the code 1 (initialization) and have the confidences beside them, in
    `<name>_001_confidence.value`, which are written before the boxes."""
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


def _confidence_file(path: Path) -> Path:
    return path.with_name(f"{path.stem}_confidence.value")


def score_folder(
    folder: str | Path, truths: Sequence[Truth], protocol: Protocol | str, tracker: str | None = None,
    form: Form = "xywh", partial: bool = False, **about: Any,
) -> EvaluationResult:
    """Scores the raw results of any tracker, in the layout that the set's toolkit reads. ValueError, which names file
    and line, for no result at all, without `partial` also for a part that is missing, and for a line that is no box.

    Args:
        folder (`str` or `Path`): one file per sequence: `<name>.txt`, `<name>/<name>_001.txt` or, for multi-start
            sets, `<name>/<name>_<anchor>.txt`; VOT's `.bin` too. Numbers parted by comma, tab or space; 4 numbers
            per line, or 8 (four corners).
        truths (list of [`Truth`]), protocol (`Protocol` or `str`): the set's sequences, and the rules.
        tracker (`str`, *optional*): its name; the folder's by default.
        form (`str`): what four numbers are: "xywh", or "xyxy" (two corners, with w = x2 - x1).
        partial (`bool`): score and mark what is there; missing frames are misses.
        about: further fields of the result, as in [`score`].

    Example:
        ```python
        truths = [truth_of(sequence, "lasher") for sequence in open_dataset(root, dataset="lasher", split="test")]
        print(score_folder("results/lasher/vipt", truths, "lasher").scores)
        ```
    """
    protocol, folder = get_protocol(protocol), Path(folder)
    if form not in get_args(Form):
        raise ValueError(f"--form {form} (form={form!r}): expected xywh or xyxy")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder} of raw results")
    check_names([truth.name for truth in truths])
    files = {truth.name: file for truth in truths if (file := _found(folder, truth, protocol)) is not None}
    missing = [truth.name for truth in truths if truth.name not in files]
    if not files:
        seen = ", ".join(sorted(path.name for path in folder.iterdir())[:3])
        example = result_file(folder, missing[0] if missing else "NAME", protocol, 0)
        raise ValueError(f"no result of a sequence of {protocol.title} in {folder}: expected {example}"
                         + (f"; there is {seen}" if seen else ": the folder is empty"))  # fmt: skip
    if missing and not partial:
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise ValueError(f"{folder} lacks {len(missing)} of {len(truths)} sequences: {shown}. Scores of a part are no "
                         "scores of the set; --partial (partial=True) computes and marks them all the same")
    there = [truth for truth in truths if truth.name in files]
    results = [_read(files[truth.name], truth, protocol, form, partial) for truth in there]
    notes = [*_other_files(folder, protocol, files), *_moved_by_one(there, results)]
    name = tracker or folder.resolve().name
    return score(protocol, there, results, name, missing=tuple(missing), notes=tuple(notes), **about)


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError where two sequences share a name, and so would share a file."""
    twice = sorted({name for name, count in Counter(names).items() if count > 1})
    if twice:
        raise ValueError(f"{len(twice)} names stand for several sequences: {', '.join(twice[:5])}. Results are files "
                         "of these names: rename the folders, or evaluate their parents apart")


def _found(folder: Path, truth: Truth, protocol: Protocol) -> Path | None:
    name = truth.name
    first = f"{name}_{next(iter(truth.runs)):08d}" if isinstance(protocol, MultiStart) else f"{name}_001"
    places = [folder / name / first, folder / (first if isinstance(protocol, MultiStart) else name)]
    places = places[::-1] if protocol.files == "lines" else places
    files = [place.with_name(f"{place.name}{suffix}") for place in places for suffix in (".txt", ".bin")]
    return next((file for file in files if file.is_file()), None)


def _other_files(folder: Path, protocol: Protocol, files: Mapping[str, Path]) -> list[str]:
    """A note on files that belong to no sequence, such as one whose name is misspelled."""
    found = sorted(folder.glob("*.txt")) if protocol.files == "lines" else []
    others = [path.name for path in found if path not in files.values() and "time" not in path.stem]
    more = " ..." if len(others) > 5 else ""
    return [f"{len(others)} files of no listed sequence: {', '.join(others[:5])}{more}"] if others else []


def _read(file: Path, truth: Truth, protocol: Protocol, form: Form, partial: bool) -> RawResult:
    result = RawResult(file=file)
    if isinstance(protocol, MultiStart):
        for anchor, frames in truth.runs.items():
            path = file.with_name(f"{truth.name}_{anchor:08d}{file.suffix}")
            if not path.is_file():
                raise ValueError(f"{path} is missing: {truth.name!r} has a run from frame {anchor}")
            result.runs[anchor] = _fitted(result, path, _rows(path), truth, len(frames), partial)
        return result
    rows = _rows(file, form if protocol.files != "vot" else "xywh")
    lead, given = truth.first_visible, len(rows)
    if isinstance(protocol, OnePass) and protocol.padded_in_front and 0 < lead == len(truth) - given:
        result.notes.append(f"{file}: begins at frame {lead}, the first with the target; padded in front")
        rows = np.concatenate([np.tile(rows[0], (lead, 1)), rows])
    result.boxes_xywh = _fitted(result, file, rows, truth, len(truth), partial)
    if isinstance(protocol, OnePass):
        _note_broken(result, protocol)
    else:
        result.confidence = _read_confidence(result, given, len(truth))
    _check_first(result, truth, form)
    return result


def _rows(file: Path, form: Form = "xywh") -> np.ndarray:
    rows = read_boxes(file)
    if form == "xyxy":
        rows = xyxy_to_xywh(rows)
    if len(rows) == 0:
        raise ValueError(f"{file} holds no box")
    infinite = np.isinf(rows).any(1)
    if infinite.any():
        raise ValueError(f"{file}, line {int(np.argmax(infinite)) + 1}: a box with an infinite number")
    return rows


def _fitted(result: RawResult, file: Path, rows: np.ndarray, truth: Truth, count: int, partial: bool) -> np.ndarray:
    """Exactly `count` rows: a longer result is cut, a shorter one is an error or filled with misses."""
    if len(rows) > count:
        cut = f"{len(rows)} lines for {count} frames; those from line {count + 1} on are left out"
        result.notes.append(f"{file}: {cut}")
    if len(rows) < count:
        if not partial:
            raise ValueError(f"{file} ends at line {len(rows)}, but {truth.name!r} has {count} frames: run it to its "
                             "end, or score what is there with --partial (partial=True), where the missing frames "
                             "are misses")  # fmt: skip
        result.notes.append(f"{file}: ends at line {len(rows)} of {count}; the missing frames are misses")
        result.partial = True
        rows = np.concatenate([rows, np.tile(NOWHERE, (count - len(rows), 1))])
    return rows[:count]


def _read_confidence(result: RawResult, given: int, count: int) -> np.ndarray | None:
    """`[count]`: what lies beside a file of `given` boxes; 0 for frames that it lacks."""
    file, values = _confidence_file(result.file), []
    if not file.is_file():
        result.notes.append(f"no {file.name} beside {result.file}: every confidence counts as 0, which leaves one "
                            "threshold")  # fmt: skip
        return None
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        try:
            values.append(float(line) if line.strip() else np.nan)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {line.strip()[:60]!r} is not a number") from error
    if len(values) == given - 1:  # the first frame has none, and some write no empty line for it
        values.insert(0, np.nan)
    if len(values) != given:
        raise ValueError(f"{file} has {len(values)} lines, but its boxes have {given}")
    return np.pad(values, (0, max(0, count - given)))[:count]


def _note_broken(result: RawResult, protocol: OnePass) -> None:
    """Says what the protocol makes of boxes that are none, where it takes them at all."""
    rows = result.boxes_xywh
    with np.errstate(invalid="ignore"):
        broken = np.isnan(rows).any(1) | (rows[:, 2:] < 0).any(1)
        if protocol.repair != "none":
            broken |= (rows[:, 2:] == 0).any(1)
    broken[0] &= protocol.first_frame == "kept"
    if broken.any():
        line = int(np.argmax(broken)) + 1
        then = "counts as a miss" if protocol.repair == "none" else "takes the box before it"
        others = f" ({int(broken.sum())} such lines)" if broken.sum() > 1 else ""
        result.notes.append(f"{result.file}, line {line}: {rows[line - 1].tolist()} is no box and {then}{others}")


def _first_boxes(result: RawResult, truth: Truth) -> tuple[np.ndarray, np.ndarray, bool]:
    """The first box of the ground truth and of the result, `[1, 4]`, and whether one is the other moved by a pixel."""
    at = slice(truth.first_visible, truth.first_visible + 1)
    given, first = truth.boxes_xywh[at], result.boxes_xywh[at]
    return given, first, np.allclose(np.abs(first - given), [1, 1, 0, 0], atol=1e-3)


def _check_first(result: RawResult, truth: Truth, form: Form) -> None:
    """Whether a result begins with the box that was given; tells corners, and the file of another sequence."""
    given, first, moved = _first_boxes(result, truth)
    if np.isnan([given, first]).any() or moved or metrics.overlaps(given, first)[0] >= 0.5:
        return
    place = f"{result.file}, line {truth.first_visible + 1}: {first[0].tolist()}"
    if form == "xywh" and metrics.overlaps(given, xyxy_to_xywh(first))[0] > 0.9:
        raise ValueError(f'{place} is the ground truth\'s box as two corners: say so with --form xyxy (form="xyxy")')
    truth_box = given[0].tolist()
    result.notes.append(f"{place} is not the box of the ground truth, {truth_box}: is it this sequence's file?")


def _moved_by_one(truths: Sequence[Truth], results: Sequence[RawResult]) -> list[str]:
    """A note on results that seem to count pixels from another number than the ground truth."""
    files = []
    for truth, result in zip(truths, results, strict=True):
        if not result.runs:
            given, first, moved = _first_boxes(result, truth)
            x, y = (first - given)[0, :2]
            files += [str(result.file)] if moved and x == y else []
    if not files:
        return []
    mixed = "mixed pixel bases: " if len(files) < len(results) else ""
    shown = ", ".join(files[:3]) + (" ..." if len(files) > 3 else "")
    return [f"{mixed}line 1 of {len(files)} of {len(results)} results is the ground truth's box moved by one pixel, "
            f"as if pixels were counted from another number ({shown}). Scored as they are: the toolkits shift "
            "nothing"]  # fmt: skip
