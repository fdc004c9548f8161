"""Scores under the rules of each benchmark, runs over whole data sets, and what they found."""

from .results import AttributeScore, Curve, EvaluationResult, SequenceScore, Settings, Speed, StageTime

__all__ = ["AttributeScore", "Curve", "EvaluationResult", "SequenceScore", "Settings", "Speed", "StageTime"]
