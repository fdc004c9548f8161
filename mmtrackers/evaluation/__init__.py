"""Scores under the rules of each benchmark, runs over whole data sets, and what they found."""

from . import vot_scoring as _registers_long_term_and_multi_start  # noqa: F401
from .card import add_to_card
from .protocols import PROTOCOLS, LongTerm, Metric, MultiStart, OnePass, Protocol, get_protocol
from .raw import score_folder
from .results import AttributeScore, Curve, EvaluationResult, SequenceScore, Settings, Speed, StageTime
from .run import evaluate_tracker
from .scoring import RawResult, Truth, frame_overlaps, measure, score
from .truths import truth_of

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
    "add_to_card",
    "evaluate_tracker",
    "frame_overlaps",
    "get_protocol",
    "measure",
    "score",
    "score_folder",
    "truth_of",
]
