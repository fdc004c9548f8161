"""The rules of every benchmark, one row of a table each.

Benchmarks of single-object tracking agree on overlap and centre error, and differ in small habits of their toolkits:
what is rounded, what happens to the first frame, how a frame without a target counts. Each habit is one field of a
protocol, with the values that occur named; a benchmark is a row of `PROTOCOLS`. The rows follow the toolkits' code,
named in `source`, where it differs from the papers' text.
"""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One figure of a table.

    Args:
        name (`str`): as the set's papers write it.
        curve (`str`): where it is taken from: "success", "precision" or "normalized_precision"; "overlap" is the mean
            overlap of the frames, "breakout" COESOT's success weighted by each sequence's difficulty.
        take (`int` or `str`): index into the curve, "mean" of its values, or "area" by trapezoids.

    Example:
        >>> Metric("PR", "precision", 20).take
        20
    """

    name: str
    curve: Literal["success", "precision", "normalized_precision", "overlap", "breakout"]
    take: int | Literal["mean", "area"] = "mean"


@dataclass(frozen=True)
class Protocol:
    """What all protocols have.

    Args:
        name (`str`): key in `PROTOCOLS`.
        title (`str`): the data set, to show.
        source (`str`): whose code or paper it follows.
        headline (`str`): the metric that trackers are ranked by.
        files (`str`): how raw results lie in a folder: "lines" (`<name>.txt`), "got10k" (`<name>/<name>_001.txt`),
            "vot" (the same, with the code 1 in the first line and confidences beside), "anchors" (one VOT file per
            run).
    """

    name: str
    title: str
    source: str
    headline: str
    files: Literal["lines", "got10k", "vot", "anchors"] = "lines"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The figures, in the order of the set's tables."""
        raise NotImplementedError


@dataclass(frozen=True)
class OnePass(Protocol):
    """One run from the first frame to the last: success, precision and normalised precision.

    Args:
        metrics (`tuple[Metric, ...]`): the figures.
        single_precision (`bool`): boxes are float32, which decides ties at a threshold as the toolkit does.
        rounding (`str`): which boxes are rounded to whole pixels (half to even): "none", "result" or "both".
        first_frame (`str`): "kept"; "truth" (the result's first box becomes the ground truth's, then bad rows are
            repaired); "truth after repair" (the other way round); "dropped" (the frame does not count).
        repair (`str`): which rows of a result take the box before them: "none"; "no area" (NaN, or a side of 0 or
            less); "zero side" (a side of exactly 0, while NaN and negative sides are errors). Never where the ground
            truth is NaN.
        inclusive_edges (`bool`): overlap takes x + w - 1 as a box's right edge. The same area with another rounding:
            the given first box may overlap by a hair more than 1 and so lie above the last threshold.
        clip (`bool`): both boxes are cut to the image.
        modalities (`str`): "first" (the visible boxes), or "nearer" (every frame takes the smaller error and the
            larger overlap of the two modalities, independently).
        hidden (`str`): frames that the set's flags call absent: "ignored" (the flags are not read); "removed";
            "missed" (a miss in every curve, whatever the boxes); "unusable" (as below).
        unannotated_removed (`bool`): frames without ground truth (no line, or NaN) do not count.
        unusable (`str`, *optional*): with "", every frame is measured. Otherwise a frame whose ground truth has a
            number that is not above 0 (also an x or y of 0, at the border) misses in success; and "hit" or "miss" says
            how its centre error counts (toolkits write -1 or infinity).
        unusable_normalized (`str`): the same for its normalised error.
        hidden_normalized (`str`): the same for hidden frames.
        divide_by_usable (`bool`): the denominator leaves out unusable frames.
        normalizer (`str`): the error is divided by the ground truth's "size", by "size + 1e-8" or by "max(1, size)".
        success_steps (`int`): thresholds from 0 to 1 in so many steps; a success lies above its threshold.
        precision_limit (`float`): thresholds from 0 to so many pixels in 50 steps.
        precision_strict (`bool`): a precise frame lies below its threshold; otherwise at or below.
        pooled (`bool`): every frame weighs the same; otherwise every sequence.
        empty_left_out (`bool`): sequences that hit nothing in a curve do not count in that curve's mean.
        padded_in_front (`bool`): where the first frames are absent, a result may begin at the first visible one.

    Example:
        >>> PROTOCOLS["lasher"].rounding, PROTOCOLS["rgbt234"].rounding
        ('both', 'result')
    """

    metrics: tuple[Metric, ...] = ()
    single_precision: bool = False
    rounding: Literal["none", "result", "both"] = "none"
    first_frame: Literal["kept", "truth", "truth after repair", "dropped"] = "kept"
    repair: Literal["none", "no area", "zero side"] = "none"
    inclusive_edges: bool = True
    clip: bool = False
    modalities: Literal["first", "nearer"] = "first"
    hidden: Literal["ignored", "removed", "missed", "unusable"] = "ignored"
    unannotated_removed: bool = False
    unusable: Literal["", "hit", "miss"] = ""
    unusable_normalized: Literal["hit", "miss"] = "hit"
    hidden_normalized: Literal["hit", "miss"] = "hit"
    divide_by_usable: bool = False
    normalizer: Literal["size", "size + 1e-8", "max(1, size)"] = "size"
    success_steps: int = 20
    precision_limit: float = 50.0
    precision_strict: bool = False
    pooled: bool = False
    empty_left_out: bool = False
    padded_in_front: bool = False

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(metric.name for metric in self.metrics)


@dataclass(frozen=True)
class LongTerm(Protocol):
    """Precision, recall and F over confidence thresholds; overlap in whole pixels inside the image.

    The first frame has no region and confidence 0; a frame without ground truth has overlap 0. Ground truth given as a
    polygon or a mask counts by its upright bounds, where the VOT toolkit fills its pixels; the sets named here have
    rectangles.

    Args:
        resolution (`int`, *optional*): thresholds in all, +inf and -inf among them; `None` takes every confidence.

    Example:
        >>> PROTOCOLS["depthtrack"].metric_names
        ('Pr', 'Re', 'F')
    """

    resolution: int | None = 100

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("Pr", "Re", "F")


@dataclass(frozen=True)
class MultiStart(Protocol):
    """Runs from several anchors, forward and backward: expected average overlap, accuracy, robustness.

    Overlap as in [`LongTerm`].

    Args:
        threshold (`float`), grace (`int`): so many frames in a row with an overlap at or below it end a run.
        low, high (`int`): the expected overlap is averaged over run lengths from `low` to `high` - 1.

    Example:
        >>> PROTOCOLS["vot22rgbd"].metric_names
        ('EAO', 'A', 'R')
    """

    threshold: float = 0.1
    grace: int = 10
    low: int = 115
    high: int = 755

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("EAO", "A", "R")


_PR, _NPR, _SR = Metric("PR", "precision", 20), Metric("NPR", "normalized_precision", 20), Metric("SR", "success")
_MPR, _MSR = Metric("MPR", "precision", 20), Metric("MSR", "success")
_AUC, _OP50, _OP75 = Metric("AUC", "success"), Metric("OP50", "success", 10), Metric("OP75", "success", 15)
_RGBT = "opacity-black/RGBT_toolkit (package rgbt 1.0.1)"
_PYTRACKING = "visionml/pytracking, analysis/extract_results.py"
_VOT = "votchallenge/toolkit"

_LASHER = OnePass(
    "lasher", "LasHeR", _RGBT, "SR", metrics=(_PR, _NPR, _SR), single_precision=True, rounding="both",
    first_frame="truth", repair="no area", unusable="hit", normalizer="size + 1e-8",
)  # fmt: skip
_RGBT234 = OnePass(
    "rgbt234", "RGBT234", _RGBT, "MSR", metrics=(_MPR, _MSR), single_precision=True, rounding="result",
    modalities="nearer",
)  # fmt: skip
_VISEVENT = OnePass(
    "visevent", "VisEvent", "wangxiao5791509/VisEvent_SOT_Benchmark, utils/", "SR", metrics=(_PR, _NPR, _SR),
    first_frame="truth after repair", repair="no area", hidden="missed", unusable="hit", empty_left_out=True,
    padded_in_front=True,
)  # fmt: skip
_OPE = OnePass(
    "otb100", "OTB100", _PYTRACKING, "AUC",
    metrics=(_AUC, _OP50, _OP75, Metric("Pnorm", "normalized_precision", 20), Metric("P", "precision", 20)),
    first_frame="truth after repair", repair="zero side", unusable="miss",
)  # fmt: skip

_ROWS: tuple[Protocol, ...] = (
    _LASHER,
    _RGBT234,
    OnePass(
        "rgbt210", "RGBT210", _RGBT, "SR", metrics=(_PR, _SR), single_precision=True, rounding="result",
        first_frame="truth",
    ),
    replace(
        _RGBT234, name="gtot", title="GTOT", precision_limit=25.0, precision_strict=True, pooled=True,
        metrics=(Metric("MPR", "precision", 10), Metric("MSR", "success", "area")),
    ),
    # The evaluation code of VTUAV is not published: the paper's rule (Zhang et al., CVPR 2022), every 10th frame.
    replace(
        _RGBT234, name="vtuav", title="VTUAV", source="Zhang et al., CVPR 2022", single_precision=False,
        rounding="none", unannotated_removed=True,
    ),
    _VISEVENT,
    replace(
        _VISEVENT, name="coesot", title="COESOT", source="Event-AHU/COESOT, COESOT_eval_toolkit/",
        metrics=(_SR, _PR, _NPR, Metric("BOC", "breakout")),
    ),
    replace(
        _OPE, name="fe108", title="FE108", source="Zhang et al., ICCV 2021", headline="RSR",
        metrics=(Metric("RSR", "success"), Metric("RPR", "precision", 20), _OP50, _OP75),
    ),
    replace(_OPE, name="lasot", title="LaSOT", hidden="unusable", hidden_normalized="miss"),
    # Its tag is not "lasot" in the toolkit, so that a frame without the target hits in normalised precision.
    replace(_OPE, name="lasot_ext", title="LaSOText", hidden="unusable"),
    replace(_OPE, name="uav123", title="UAV123", unusable="hit"),
    replace(_OPE, name="nfs", title="NFS"),
    _OPE,
    replace(_OPE, name="tnl2k", title="TNL2K"),
    # The test set's boxes are on a server, whose code is not public: for sequences with boxes of one's own.
    replace(_OPE, name="trackingnet", title="TrackingNet"),
    OnePass(
        "got10k", "GOT-10k", "got-10k/toolkit, experiments/got10k.py", "AO", "got10k",
        metrics=(Metric("AO", "overlap"), Metric("SR0.5", "success", 50), Metric("SR0.75", "success", 75)),
        first_frame="dropped", inclusive_edges=False, clip=True, hidden="removed", success_steps=100, pooled=True,
    ),
    OnePass(
        "otb100_got10k", "OTB100", "got-10k/toolkit, experiments/otb.py", "AUC",
        metrics=(_AUC, Metric("P", "precision", 20)), first_frame="truth", inclusive_edges=False,
    ),
    OnePass(
        "lasot_got10k", "LaSOT", "got-10k/toolkit, experiments/lasot.py", "AUC",
        metrics=(_AUC, Metric("Pnorm", "normalized_precision", 20), Metric("P", "precision", 20)),
        first_frame="truth", inclusive_edges=False, unannotated_removed=True, normalizer="max(1, size)",
    ),
    LongTerm("depthtrack", "DepthTrack", f"{_VOT}, analysis/longterm.py", "F", "vot"),
    LongTerm("cdtb", "CDTB", f"{_VOT}, analysis/longterm.py", "F", "vot"),
    MultiStart("vot22rgbd", "VOT22-RGBD", f"{_VOT}, analysis/multistart.py, stack vot2022/rgbd", "EAO", "anchors"),
)  # fmt: skip

PROTOCOLS: dict[str, Protocol] = {row.name: row for row in _ROWS}
"""All protocols by name. `otb100` and `lasot` follow pytracking, as the published numbers of recent trackers do;
`otb100_got10k` and `lasot_got10k` follow the got-10k toolkit, which gives others."""


def get_protocol(name: str | Protocol) -> Protocol:
    """The protocol of that name (a protocol passes through).

    Raises:
        ValueError: there is none; the message lists those that exist.

    Example:
        >>> get_protocol("LasHeR").metric_names
        ('PR', 'NPR', 'SR')
    """
    if isinstance(name, Protocol):
        return name
    found = PROTOCOLS.get(name.lower().replace("-", "").replace(" ", ""))
    if found is None:
        raise ValueError(f"there is no protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    return found
