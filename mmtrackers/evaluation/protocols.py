"""The rules of every benchmark, one row of a table each.

Benchmarks agree on overlap and center error, and differ in small habits of their toolkits: what is rounded, what
happens to the first frame, how a frame without a target counts. Each habit is one field of a protocol. The rows follow
the toolkits' code, named in `source`, where it differs from the papers' text.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .one_pass import Metric, OnePass
from .results import AttributeScore, EvaluationResult, SequenceScore
from .scoring import Protocol, RawResult, Truth
from .vot_scoring import LongTerm, MultiStart

_PR, _NPR, _SR = Metric("PR", "precision", 20), Metric("NPR", "normalized_precision", 20), Metric("SR", "success")
_MPR, _MSR = Metric("MPR", "precision", 20), Metric("MSR", "success")
_AUC, _OP50, _OP75 = Metric("AUC", "success"), Metric("OP50", "success", 10), Metric("OP75", "success", 15)
_P, _PNORM = Metric("P", "precision", 20), Metric("Pnorm", "normalized_precision", 20)
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
    "otb100", "OTB100", _PYTRACKING, "AUC", metrics=(_AUC, _OP50, _OP75, _PNORM, _P),
    first_frame="truth after repair", repair="zero side", unusable="miss",
)  # fmt: skip

OWN_SEQUENCES = "folder"

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
    # Its tag is not "lasot" in the toolkit, so that a frame without the target hits in normalized precision.
    replace(_OPE, name="lasot_ext", title="LaSOT_ext", hidden="unusable"),
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
        metrics=(_AUC, _P), first_frame="truth", inclusive_edges=False,
    ),
    OnePass(
        "lasot_got10k", "LaSOT", "got-10k/toolkit, experiments/lasot.py", "AUC",
        metrics=(_AUC, _PNORM, _P), first_frame="truth", inclusive_edges=False, unannotated_removed=True,
        normalizer="max(1, size)",
    ),
    # No toolkit's habits: the frames after the given one that show the target count, each sequence as much as another.
    replace(
        _OPE, name=OWN_SEQUENCES, title="own sequences", source="one-pass evaluation (Wu et al., TPAMI 2015)",
        first_frame="given dropped", repair="none", unusable="", hidden="removed", unannotated_removed=True,
        empty_removed=True, inclusive_edges=False, normalizer="max(1, size)",
    ),
    LongTerm("depthtrack", "DepthTrack", f"{_VOT}, analysis/longterm.py", "F", "vot"),
    LongTerm("cdtb", "CDTB", f"{_VOT}, analysis/longterm.py", "F", "vot"),
    MultiStart("vot22rgbd", "VOT22-RGBD", f"{_VOT}, analysis/multistart.py, stack vot2022/rgbd", "EAO", "anchors"),
)  # fmt: skip

PROTOCOLS: dict[str, Protocol] = {row.name: row for row in _ROWS}
"""All protocols by name. `otb100` and `lasot` follow pytracking, as the published numbers of recent trackers do;
`otb100_got10k` and `lasot_got10k` follow the got-10k toolkit, which gives others."""


def get_protocol(name: str | Protocol) -> Protocol:
    """The protocol of that name (a protocol passes through); ValueError, which lists them, where there is none.

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


def score(
    protocol: Protocol | str, truths: Sequence[Truth], results: Sequence[RawResult], tracker: str = "", **about: Any
) -> EvaluationResult:
    """Scores one tracker on one set; ValueError as for `Protocol.measure`.

    Args:
        protocol (`Protocol` or `str`): the rules, or their name.
        truths (list of [`Truth`]), results (list of [`RawResult`]): `results[i]` belongs to `truths[i]`.
        tracker (`str`), about: its name, to show; further fields of the result (`notes`, `settings`, ...).

    Example:
        >>> truth = Truth("a", np.tile([10.0, 10, 20, 20], (4, 1)), attributes=("FM",))
        >>> result = score("lasher", [truth], [RawResult(truth.boxes_xywh)], tracker="perfect")
        >>> {name: round(value, 4) for name, value in result.scores.items()}
        {'PR': 1.0, 'NPR': 1.0, 'SR': 0.9524}
        >>> result.attributes["FM"].sequences
        ('a',)
    """
    protocol = get_protocol(protocol)
    measured = protocol.measure(truths, results)
    sequences = tuple(
        SequenceScore(truth.name, len(truth), measured.of_sequence(i), measured.counted(i), result.partial,
                      tuple(result.notes), result.file and str(result.file))
        for i, (truth, result) in enumerate(zip(truths, results, strict=True))
    )  # fmt: skip
    attributes = {}
    for name in dict.fromkeys(attribute for truth in truths for attribute in truth.attributes):
        chosen = [i for i, truth in enumerate(truths) if name in truth.attributes]
        attributes[name] = AttributeScore(tuple(truths[i].name for i in chosen), measured.summary(np.array(chosen)))
    partial = bool(about.get("missing")) or any(result.partial for result in results)
    return EvaluationResult(
        tracker, protocol.title, protocol.name, measured.summary(np.arange(len(truths))), protocol.headline,
        curves=measured.curves(), sequences=sequences, attributes=attributes, partial=partial, **about,
    )  # fmt: skip
