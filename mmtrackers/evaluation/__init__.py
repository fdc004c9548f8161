"""Scores under the rules of each benchmark, runs over whole data sets, and what they found."""

from . import vot_scoring as _registers_long_term_and_multi_start  # noqa: F401
from .protocols import PROTOCOLS, LongTerm, Metric, MultiStart, OnePass, Protocol, get_protocol
from .results import AttributeScore, Curve, EvaluationResult, SequenceScore, Settings, Speed, StageTime
from .scoring import RawResult, Truth, frame_overlaps, measure, score

__all__ = [
    "PROTOCOLS",
    "AttributeScore",
    "Curve",
    "EvaluationResult",
    "LongTerm",
    "Metric",
    "MultiStart",
    "OnePass",
    "Protocol",
    "RawResult",
    "SequenceScore",
    "Settings",
    "Speed",
    "StageTime",
    "Truth",
    "frame_overlaps",
    "get_protocol",
    "measure",
    "score",
]
