"""Runs over whole data sets: one process or many, resumable, and the same boxes every time."""

import hashlib
import io
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mmtrackers import data
from mmtrackers.data.annotations import read_boxes
from mmtrackers.hub.adapters import active_adapter, adapter_names
from mmtrackers.processing.files import FolderLock, write_text
from mmtrackers.processing.frames import ANY
from mmtrackers.tracking.ahead import ReadAhead
from mmtrackers.tracking.clock import STAGES, StageClock
from mmtrackers.tracking.session import update_together
from mmtrackers.tracking.tracker import Tracker

from .plan import Job, dealt, grouped, planned, processes
from .protocols import get_protocol
from .raw import check_names, result_file, score_folder, truth_of, write_result
from .results import WARMUP, EvaluationResult, Settings, speed_of
from .scoring import Protocol, RawResult, Truth

RAW, FRAMES, SETTINGS, SCORES = "raw", "frames", "settings.json", "scores.json"
# What a config says of the files and the library, not of the model
_BESIDE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}


def evaluate_tracker(
    tracker: Tracker, sequences: Sequence[data.Sequence], protocol: Protocol | str, *, name: str = "tracker",
    output: str | Path | None = None, batch: int = 1, settings: Settings | None = None, overwrite: bool = False,
    progress: bool = False, split: str = "", title: str | None = None,
) -> EvaluationResult:
    """Tracks through every sequence of a set and scores the boxes by its protocol, where the ground truth is public.

    Sequences are put in groups of `batch`, longest first; a group shares its forward passes, and nothing else decides
    which: a resumed run, and one in several processes (`accelerate launch`), give the same boxes.

    Args:
        tracker ([`Tracker`]), sequences (list of [`Sequence`]): in evaluation mode; as `open_dataset` gives them.
        protocol (`Protocol` or `str`): the rules, such as "lasher".
        name, split (`str`), title (`str`, *optional*): to show: the tracker, the part of the set that the sequences
            are, and the set (the protocol's own by default).
        output (`str` or `Path`, *optional*): folder of this tracker on this set: `raw/` holds the boxes in the form of
            the set's toolkit, `frames/` score and times of every frame, `settings.json` what the run was made with,
            `scores.json` the result. What a run with the same settings on the same frames left is not done again.
        batch (`int`): sequences side by side; more than 1 pays on a GPU.
        settings ([`Settings`], *optional*): of the tracker, where it was packed since.
        overwrite (`bool`): throw away what a run with other settings, or on other frames, left in `output`.
        progress (`bool`): show a bar, and say what is reused.

    Raises:
        ValueError: `output` holds results of other settings or frames; a stream that the tracker needs is missing; a
            sequence cannot be read.

    Example:
        ```python
        sequences = open_dataset("LasHeR", dataset="lasher", split="test")
        result = evaluate_tracker(Tracker.from_pretrained("org/seatrack-thermal"), sequences, "lasher", output="out")
        print(result.scores["SR"], result.speed.frames_per_second)
        ```
    """
    protocol, state = get_protocol(protocol), processes()
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected at least 1 sequence")
    if output is None and state.num_processes > 1:
        raise ValueError("several processes share their results through files: give a folder (output, --output)")
    if len(sequences) == 0:
        raise ValueError("there is no sequence to track through")
    settings = replace(settings or settings_of(tracker, name), batch=batch)
    check_names([sequence.name for sequence in sequences])
    sequences = [_readable(sequence, tracker) for sequence in sequences]
    truths = [truth_of(sequence, protocol) for sequence in sequences]
    jobs = planned(truths, sequences, protocol)
    with ExitStack() as stack:
        folder = Path(output or stack.enter_context(tempfile.TemporaryDirectory()))
        if state.is_main_process:
            stack.enter_context(FolderLock(folder))
            _claim(folder, settings, overwrite)
            if output is not None:  # nobody comes back to a temporary folder
                _claim_frames(folder, jobs, sequences, protocol, overwrite)
        state.wait_for_everyone()
        groups = grouped(jobs, batch)
        left = [group for group in groups if not all(_is_done(folder, job, protocol) for job in group)]
        state.wait_for_everyone()
        shown = progress and state.is_main_process
        if shown and len(left) < len(groups):
            runs = sum(map(len, groups))
            kept = runs - sum(map(len, left))
            print(f"{name}: {kept} of {runs} runs are there already, made with the same settings")
        mine = dealt(left, state.num_processes)[state.process_index]
        clock = StageClock(tracker.device)
        frames = sum(len(job.frames) for group in mine for job in group)
        about = name if state.num_processes == 1 else f"{name} (process 1 of {state.num_processes})"
        look = {"desc": about, "disable": not shown, "smoothing": 0.02, "dynamic_ncols": True}
        with tqdm(total=frames, unit="frame", **look) as bar:
            for group in mine:
                for job, rows in _track(tracker, group, sequences, clock, bar):
                    _keep(folder, job, protocol, rows)
        state.wait_for_everyone()
        result = _scored(folder, truths, sequences, protocol, name, settings, tracker.device)
        result = replace(result, split=split, dataset=title or result.dataset)
        if state.is_main_process and output is not None:
            result.save(folder / SCORES)
        state.wait_for_everyone()
    return result


def _readable(sequence: data.Sequence, tracker: Tracker) -> data.Sequence:
    """The sequence with the streams that the tracker reads; says which one is missing."""
    if tracker.streams == 1 and tracker.modality == "rgb":
        # unlike `rgb_only`, with the second modality's boxes: a protocol may score against both
        return replace(sequence, frames={"rgb": sequence.frames["rgb"]})
    fits = sequence.modality != "rgb" if tracker.modality == ANY else tracker.modality in sequence.frames
    if not fits and not tracker.allow_missing:
        raise ValueError(f"sequence {sequence.name!r} has {' and '.join(sequence.frames)}, but the tracker reads "
                         f"{tracker.modality}: take another tracker, or allow_missing (--allow-missing) to feed RGB "
                         "in its place")  # fmt: skip
    return sequence


def _frames(sequence: data.Sequence, job: Job, spent: list[float]) -> Iterator[dict[str, np.ndarray]]:
    """The frames of a run; `spent` gets the seconds that each took to read. Errors name run and frame."""
    for index in job.frames.tolist():
        begin = time.perf_counter()
        try:
            frame = sequence.read(index)
        except ValueError as error:
            raise ValueError(f"{job.label}, frame {index}: {error}") from error
        spent.append(time.perf_counter() - begin)
        yield frame


def _track(
    tracker: Tracker, jobs: Sequence[Job], sequences: Sequence[data.Sequence], clock: StageClock, bar: Any
) -> Iterator[tuple[Job, np.ndarray]]:
    """Tracks through a group, a frame of each at a time; yields each run as it ends, with its rows `[N, 10]`: box,
    score, milliseconds of each stage, and whether these count."""
    with ExitStack() as stack:
        spent: list[list[float]] = [[] for _ in jobs]
        readers = [_frames(sequences[job.sequence], job, into) for job, into in zip(jobs, spent, strict=True)]
        if tracker.device.type != "cpu":  # reading takes the CPU, tracking does not
            readers = [stack.enter_context(ReadAhead(reader)) for reader in readers]
        sessions, rows, active = [], [], list(range(len(jobs)))
        for job, reader, seconds in zip(jobs, readers, spent, strict=True):
            frame = next(reader)
            clock.begin(seconds[0])
            try:
                sessions.append(tracker.start(frame, job.box_xywh))
            except ValueError as error:
                raise ValueError(f"{job.label}, frame {job.frames[0]}: {error}") from error
            clock("model")
            rows.append([(*job.box_xywh, 1.0, *(1000 * seconds for seconds in clock.row), False)])
        bar.update(len(jobs))
        for step in itertools.count(1):
            for i in [i for i in active if len(jobs[i].frames) == step]:
                active.remove(i)
                yield jobs[i], np.array(rows[i])
            if not active:
                return
            frames = [next(readers[i]) for i in active]
            clock.begin(sum(spent[i][step] for i in active))
            try:
                found = update_together([sessions[i] for i in active], frames, clock)
            except ValueError as error:
                names = ", ".join(f"{jobs[i].label} (frame {jobs[i].frames[step]})" for i in active)
                raise ValueError(f"{names}: {error}") from error
            times = [1000 * seconds / len(active) for seconds in clock.end()]
            for i, prediction in zip(active, found, strict=True):
                rows[i].append((*prediction.box, prediction.score, *times, len(clock.rows) > WARMUP))
            bar.update(len(active))


def _claim(folder: Path, settings: Settings, overwrite: bool) -> None:
    """Makes the folder this run's own, or says why it is another one's."""
    path = folder / SETTINGS
    if path.is_file():
        try:
            there = Settings(**json.loads(path.read_text(encoding="utf-8"))["settings"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} cannot be read ({error}): take another folder, or delete this one") from error
        if there.fingerprint == settings.fingerprint:
            return
        if not overwrite:
            raise ValueError(f"{folder} holds results of other settings ({'; '.join(settings.differences(there))}): "
                             "they are not reused. Take another folder (--output), or throw them away with "
                             "--overwrite")  # fmt: skip
        _throw_away(folder)
    elif (folder / RAW).exists():
        raise ValueError(f"{folder / RAW} is there without {SETTINGS}: nobody knows what made it; take another folder")
    record = {"fingerprint": settings.fingerprint, "settings": asdict(settings)}
    write_text(path, json.dumps(record, indent=1) + "\n")


def _claim_frames(
    folder: Path, jobs: Sequence[Job], sequences: Sequence[data.Sequence], protocol: Protocol, overwrite: bool
) -> None:
    """Notes the frames that runs are made of, or says whose were others: a copy of a set has the same names, boxes and
    lengths, and streams may be paired in another way."""
    path = folder / SETTINGS
    record = json.loads(path.read_text(encoding="utf-8"))
    known, now = record.get("frames", {}), {sequence.name: _frames_hash(sequence) for sequence in sequences}
    others = [name for name, found in now.items() if known.get(name, found) != found]
    # of a run that was not made, such as one that a broken picture has stopped, frames may be mended
    done = {job.name for job in jobs if job.name in others and _is_done(folder, job, protocol)}
    if done and not overwrite:
        named = ", ".join(sorted(done)[:5]) + (" ..." if len(done) > 5 else "")
        raise ValueError(f"{folder} holds results on other frames than {len(done)} of these sequences have ({named}): "
                         "they are not reused. Take another folder (--output), or throw them away with --overwrite")
    if done:
        _throw_away(folder)
    write_text(path, json.dumps(record | {"frames": known | now}, indent=1) + "\n")


def _frames_hash(sequence: data.Sequence) -> str:
    """16 hexadecimal digits over the names of all frames and what is in the first, middle and last files."""
    digest = hashlib.sha256()
    for modality, files in sequence.frames.items():
        digest.update("\n".join([modality, *(file.name for file in files)]).encode(errors="surrogateescape"))
        for file in (files[0], files[len(files) // 2], files[-1]):
            with suppress(OSError):  # reading the frame will say so
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _throw_away(folder: Path) -> None:
    for part in (RAW, FRAMES):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / SCORES).unlink(missing_ok=True)


def _frames_file(folder: Path, job: Job) -> Path:
    return folder / FRAMES / f"{job.label}.csv"


def _frame_table(folder: Path, job: Job) -> np.ndarray:
    """`[N, 6]`: a run's score, milliseconds of each stage, and whether these count."""
    path = _frames_file(folder, job)
    try:
        table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it, and its run is made again") from error
    if table.shape != (len(job.frames), len(STAGES) + 2):
        raise ValueError(f"{path} has {len(table)} rows for {len(job.frames)} frames: delete it, and its run is made "
                         "again")
    return table


def _keep(folder: Path, job: Job, protocol: Protocol, rows: np.ndarray) -> None:
    """Writes one run; the file of its boxes comes last, and tells a later run that this one is done."""
    boxes, table = rows[:, :4], rows[:, 4:]
    text = io.StringIO()
    header = ",".join(["score", *(f"{stage}_ms" for stage in STAGES), "timed"])
    np.savetxt(text, table, ["%.6f", *["%.4f"] * len(STAGES), "%d"], ",", header=header, comments="")
    write_text(_frames_file(folder, job), text.getvalue())
    lead = int(job.frames[0]) if job.anchor is None else 0
    # the set's toolkit wants a line for every frame
    boxes, scores = np.pad(boxes, ((lead, 0), (0, 0)), mode="edge"), np.pad(table[:, 0], (lead, 0))
    if protocol.files == "got10k":
        path = result_file(folder / RAW, job.name, protocol)
        seconds = "".join(f"{value / 1000:.6f}\n" for value in table[:, 2:-1].sum(1))
        write_text(path.with_name(f"{job.name}_time.txt"), seconds)
    runs = {} if job.anchor is None else {job.anchor: boxes}
    write_result(folder / RAW, job.name, protocol, RawResult(boxes, scores, runs))


def _is_done(folder: Path, job: Job, protocol: Protocol) -> bool:
    """Whether a run's files are there, of the right length and from the same given box."""
    try:
        _frame_table(folder, job)
        rows = read_boxes(result_file(folder / RAW, job.name, protocol, job.anchor))
    except (OSError, ValueError):
        return False
    if len(rows) != (len(job.frames) if job.anchor is not None else job.frames[-1] + 1):
        return False
    # the toolkit's first line is a code
    return protocol.files in ("vot", "anchors") or np.allclose(rows[0], job.box_xywh, atol=1e-3)


def _scored(
    folder: Path, truths: list[Truth], sequences: Sequence[data.Sequence], protocol: Protocol, name: str,
    settings: Settings, device: torch.device,
) -> EvaluationResult:
    times: dict[str, np.ndarray] = {truth.name: np.empty((0, len(STAGES))) for truth in truths}
    warmup = 0
    for job in planned(truths, sequences, protocol):
        table = _frame_table(folder, job)
        timed = table[:, -1] == 1
        times[job.name] = np.concatenate([times[job.name], table[timed, 1:-1] / 1000])
        warmup += int((~timed[1:]).sum())  # the given frame is none that was tracked
    speed = speed_of(np.concatenate(list(times.values())), device, settings.batch, warmup=0)
    about = {"speed": speed and replace(speed, warmup=warmup), "settings": settings}
    if not any(sequence.annotated[1:].any() for sequence in sequences):  # GOT-10k's and TrackingNet's test sets
        notes = (f"no ground truth beyond the first frames: upload {folder / RAW} to the set's server",)
        return EvaluationResult(name, protocol.title, protocol.name, {}, protocol.headline, notes=notes, **about)
    result = score_folder(folder / RAW, truths, protocol, name, **about)
    rates = {of: round(1 / float(np.median(rows[:, 1:].sum(1))), 2) for of, rows in times.items() if len(rows)}
    rows = [replace(row, frames_per_second=rates.get(row.name)) for row in result.sequences]
    return replace(result, sequences=tuple(rows))


def settings_of(tracker: Tracker, name: str = "", pack: bool = False) -> Settings:
    """The settings of a tracker from a folder or Hub id; to be asked for before `pack()`, which lays the weights out
    for one machine, and saying whether it will be packed."""
    import mmtrackers

    model = tracker.model
    adapter = model.peft_config[active_adapter(model)] if adapter_names(model) else None
    same = ("modality", "streams", "absent_below", "size_momentum", "recover", "allow_missing")
    return Settings(
        tracker=name,
        system=type(model).__name__,
        base=None if adapter is None else str(adapter.base_model_name_or_path),
        tuner=None if adapter is None else str(getattr(adapter.peft_type, "value", adapter.peft_type)),
        weights=_weights_hash(model),
        processor=json.loads(json.dumps(tracker.image_processor.to_dict())),
        dtype=str(tracker.dtype).removeprefix("torch."),
        device=tracker.device.type,
        pack=pack,
        version=mmtrackers.__version__,
        **{name: getattr(tracker, name) for name in same},
    )


def _weights_hash(model: Any) -> str:
    """32 hexadecimal digits over every tensor with its name, and over the model's config."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    if (config := getattr(model, "config", None)) is not None:
        kept = {key: value for key, value in config.to_dict().items() if key not in _BESIDE}
        digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]
