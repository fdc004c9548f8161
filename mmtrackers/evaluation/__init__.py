"""Scores under the rules of each benchmark, runs over whole data sets, and what they found."""

from .card import add_to_card
from .one_pass import Metric, OnePass
from .protocols import PROTOCOLS, get_protocol, score
from .raw import score_folder, truth_of
from .results import AttributeScore, Curve, EvaluationResult, SequenceScore, Settings, Speed, StageTime
from .run import evaluate_tracker
from .scoring import Protocol, RawResult, Truth
from .vot_scoring import LongTerm, MultiStart

__all__ = [
    "PROTOCOLS", "AttributeScore", "Curve", "EvaluationResult", "LongTerm", "Metric", "MultiStart", "OnePass",
    "Protocol", "RawResult", "SequenceScore", "Settings", "Speed", "StageTime", "Truth", "add_to_card",
    "evaluate_tracker", "get_protocol", "score", "score_folder", "truth_of",
]
