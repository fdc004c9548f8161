"""What an evaluation found: typed, without arrays, and with an exact way to JSON and back.

All scores are fractions from 0 to 1 (the tables of papers print them times 100). A score that has no value for a
sequence or an attribute is not in its dict.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmtrackers.processing.files import write_text
from mmtrackers.tracking.clock import STAGES

FORMAT = 1
WARMUP = 10


@dataclass(frozen=True)
class Curve:
    """One plot of a protocol, averaged over the sequences as the protocol says.

    Args:
        x, y (`tuple[float, ...]`): of the same length; y is a fraction.
        x_label, y_label (`str`): what stands at the axes.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    x_label: str
    y_label: str


@dataclass(frozen=True)
class SequenceScore:
    """The scores of one sequence.

    Args:
        name (`str`), frames (`int`): the sequence, and how many frames it has.
        scores (`dict[str, float]`): metric -> fraction, of this sequence alone.
        counted (`bool`): whether the protocol takes it into the set's scores (VisEvent and COESOT leave out a sequence
            in which nothing at all hits).
        partial (`bool`): its result was shorter than the sequence, and the missing frames were scored as misses.
        notes (`tuple[str, ...]`): what was noticed in its result file (cut, padded in front, another pixel base).
        file (`str`, *optional*): its raw result (one box per line), as it was read or written.
        frames_per_second (`float`, *optional*): of the tracker alone, without reading; where times are known.
    """

    name: str
    frames: int
    scores: dict[str, float]
    counted: bool = True
    partial: bool = False
    notes: tuple[str, ...] = ()
    file: str | None = None
    frames_per_second: float | None = None


@dataclass(frozen=True)
class AttributeScore:
    """The names of the sequences that have one attribute, and the set's scores over them: metric -> fraction."""

    sequences: tuple[str, ...]
    scores: dict[str, float]


@dataclass(frozen=True)
class StageTime:
    """Time of one stage in milliseconds per frame: 50th, 25th and 75th percentile."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Speed:
    """Where the time of tracking goes.

    Args:
        stages (`dict[str, StageTime]`): "read" (files to arrays), "crop" (crops, copy to the device, normalization),
            "model" (the forward pass), "decode" (maps to boxes in the frame, copy back), "track" (crop to decode
            together) and "total" (with reading). With several sequences in a batch, a step's time is divided by them.
        frames, warmup (`int`): measured, and left out at the start, while caches fill and kernels are chosen.
        batch, threads (`int`): sequences tracked side by side, at most; threads of torch on the CPU.
        device (`str`): such as "cpu" or "NVIDIA H100".
    """

    stages: dict[str, StageTime]
    frames: int
    warmup: int
    batch: int
    device: str
    threads: int

    @property
    def frames_per_second(self) -> float:
        """Frames that the tracker does in a second without reading, by the median; 0 where nothing was measured."""
        track = self.stages.get("track")
        return 1000 / track.median if track is not None and track.median > 0 else 0.0

    def __str__(self) -> str:
        """Lines for a terminal."""
        lines = [f"{'ms/frame':8} {'median':>6}   middle half"]
        lines += [f"{name:8} {t.median:6.2f}   {t.low:.2f} - {t.high:.2f}" for name, t in self.stages.items()]
        side = f", {self.batch} sequences side by side" if self.batch > 1 else ""
        last = (f"{self.frames_per_second:.1f} frames per second without reading ({self.device}, {self.threads} "
                f"threads{side}; {self.frames} frames after {self.warmup} of warm-up)")  # fmt: skip
        return "\n".join([*lines, last])


def speed_of(
    rows: np.ndarray | Sequence[Sequence[float]], device: torch.device | str, batch: int = 1, warmup: int = WARMUP
) -> Speed | None:
    """Median and middle half of every stage; None without rows.

    Args:
        rows (`[N, 4]`): seconds per frame and stage, in the order of `STAGES`.
        device (`torch.device` or `str`), batch (`int`): where the model ran; sequences side by side.
        warmup (`int`): first rows to leave out; at most half of all.

    Example:
        >>> speed_of([[0.001, 0.002, 0.010, 0.001]] * 30, "cpu").stages["model"].median
        10.0
    """
    table = np.asarray(rows, dtype=np.float64).reshape(-1, len(STAGES)) * 1000
    if not len(table):
        return None
    warmup = min(warmup, len(table) // 2)
    table = table[warmup:]
    columns = dict(zip(STAGES, table.T, strict=True))
    columns |= {"track": table[:, 1:].sum(1), "total": table.sum(1)}
    stages = {}
    for name, values in columns.items():
        low, median, high = np.round(np.percentile(values, (25, 50, 75)), 4).tolist()
        stages[name] = StageTime(median, low, high)
    device = torch.device(device)
    shown = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Speed(stages, len(table), warmup, batch, shown, torch.get_num_threads())


@dataclass(frozen=True)
class Settings:
    """With what the boxes of a run were made. Equal fingerprints mean: the same boxes are to be expected.

    Args:
        tracker (`str`), base (`str`, *optional*): folder or Hub id, as it was given, and the base that an adapter
            names; not part of the fingerprint.
        system (`str`), tuner (`str`, *optional*): the model's class and the adapter's kind.
        weights (`str`): hash over all tensors, their names and the model's config.
        processor (`dict`): the image processor's settings.
        batch (`int`): sequences that shared a forward pass.
        version (`str`): of this package. Other fields as in `Tracker.from_pretrained`.
    """

    tracker: str
    system: str = ""
    base: str | None = None
    tuner: str | None = None
    modality: str = "rgb"
    streams: int = 1
    weights: str = ""
    processor: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    device: str = "cpu"
    pack: bool = False
    batch: int = 1
    absent_below: float | None = None
    size_momentum: float = 0.0
    recover: bool = False
    allow_missing: bool = False
    version: str = ""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over everything that may change a box."""
        return hashlib.sha256(json.dumps(self._decisive(), sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: "Settings") -> list[str]:
        """What differs between two runs, in words; empty where the fingerprints are equal."""
        mine, theirs = self._decisive(), other._decisive()
        return [f"{name} {theirs[name]!r} -> {mine[name]!r}" for name in mine if mine[name] != theirs[name]]

    def _decisive(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("tracker", "base")}


@dataclass(frozen=True)
class EvaluationResult:
    """One tracker on one data set under one protocol.

    Args:
        tracker, dataset (`str`): names to show.
        protocol (`str`): key into `mmtrackers.evaluation.protocols.PROTOCOLS`.
        scores (`dict[str, float]`): metric -> fraction, in the order of the protocol's tables.
        headline (`str`): the metric to rank by.
        curves (`dict[str, Curve]`): "success", "precision", "normalized_precision"; "precision_recall" of long-term
            sets; "expected_overlap" of multi-start sets. Those that the protocol has.
        sequences (`tuple[SequenceScore, ...]`): in the set's order.
        attributes (`dict[str, AttributeScore]`): attribute -> scores, where the set has attributes.
        speed (`Speed`, *optional*), settings (`Settings`, *optional*): of a run of this package.
        partial (`bool`): sequences were missing or shorter and it was asked for all the same: not a number to publish.
        missing, notes (`tuple[str, ...]`): the sequences without a result; warnings about the whole.
        split (`str`): the part of the set, such as "test"; empty where it was not said.
    """

    tracker: str
    dataset: str
    protocol: str
    scores: dict[str, float]
    headline: str
    curves: dict[str, Curve] = field(default_factory=dict)
    sequences: tuple[SequenceScore, ...] = ()
    attributes: dict[str, AttributeScore] = field(default_factory=dict)
    speed: Speed | None = None
    settings: Settings | None = None
    partial: bool = False
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    split: str = ""

    def to_json(self) -> str:
        """Strict JSON: no NaN, no infinity."""
        return json.dumps({"format": FORMAT} | dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "EvaluationResult":
        """The inverse of `to_json`; ValueError: no JSON, another format, or an entry that is missing or unknown."""
        try:
            record = json.loads(text)
            if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
                raise ValueError(f"expected a JSON object with format {FORMAT}")
            return _revived(record)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"not an evaluation result: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Writes the JSON file, whole or not at all, and makes its folder if need be."""
        return write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "EvaluationResult":
        """Reads a file of `save`; errors name it."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


def _revived(record: dict[str, Any]) -> EvaluationResult:
    """Lists become tuples and dicts become the classes that they were."""

    def made(kind: type, fields: dict[str, Any]) -> Any:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})

    record["curves"] = {name: made(Curve, curve) for name, curve in record["curves"].items()}
    record["sequences"] = [made(SequenceScore, sequence) for sequence in record["sequences"]]
    record["attributes"] = {name: made(AttributeScore, row) for name, row in record["attributes"].items()}
    if (speed := record["speed"]) is not None:
        record["speed"] = Speed(**speed | {"stages": {name: StageTime(**t) for name, t in speed["stages"].items()}})
    if record["settings"] is not None:
        record["settings"] = Settings(**record["settings"])
    return made(EvaluationResult, record)
