"""Figures of an evaluation on a tracker's or an adapter's model card."""

import dataclasses
from pathlib import Path
from typing import Any

from mmtrackers.hub.card import FACTS, TrainingFacts, is_own_text, read_facts, write_card
from mmtrackers.processing.files import write_json

from .protocols import get_protocol
from .results import EvaluationResult


def _figures_of(result: EvaluationResult) -> list[dict[str, Any]]:
    """The scores as a card's figures, with data, protocol and settings named."""
    source = get_protocol(result.protocol).source
    about: dict[str, Any] = {"protocol": result.protocol, "rules": source, "sequences": len(result.sequences)}
    said = [f"protocol {result.protocol} (rules of {source})", f"{len(result.sequences)} sequences"]
    if result.settings is not None:
        run = result.settings
        kept = ("dtype", "device", "pack", "batch", "absent_below", "allow_missing", "version", "fingerprint")
        about |= {name: getattr(run, name) for name in kept}
        said.append(f"{run.dtype} on {run.device}{', packed' if run.pack else ''}, mmtrackers {run.version}")
    common = {"dataset": result.dataset, "note": "; ".join(said), "settings": about}
    common |= {"split": result.split} if result.split else {}
    return [common | {"metric": name, "value": round(value, 4)} for name, value in result.scores.items()]


def add_to_card(folder: str | Path, result: EvaluationResult) -> list[Path]:
    """Writes the scores into the card (`README.md` with its `model-index`) of a saved tracker or adapter; returns the
    files. ValueError for a result that is partial or without scores, OSError where the folder holds neither.

    They take the place of figures of the same set, split, metric and protocol. A card that a person wrote is left
    alone; `training_facts.json` gets the figures all the same.
    """
    folder = Path(folder)
    if result.partial or not result.scores:
        why = f"{len(result.missing)} sequences are missing" if result.missing else "it is partial or has no scores"
        raise ValueError(f"the result of {result.tracker} on {result.dataset} is no figure for a card: {why}")
    facts = read_facts(folder) or TrainingFacts()
    new = _figures_of(result)
    replaced = {_key(figure) for figure in new}
    facts = dataclasses.replace(facts, figures=[f for f in facts.figures if _key(f) not in replaced] + new)
    if is_own_text(folder):
        write_json(folder / FACTS, dataclasses.asdict(facts))
        return [folder / FACTS]
    return [write_card(folder, facts), folder / FACTS]


def _key(figure: dict[str, Any]) -> tuple[Any, ...]:
    protocol = (figure.get("settings") or {}).get("protocol")
    return (figure["dataset"], figure.get("split", ""), figure.get("metric", "AUC"), protocol)
