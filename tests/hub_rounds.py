"""The two halves of the Hub round trip; each runs in a process of its own (see `local_hub.LocalHub.run`)."""

import json
from pathlib import Path
from unittest.mock import patch

import torch
from huggingface_hub import HfApi
from peft_rows import ROWS, inputs, maps, scramble, tiny_ostrack, with_adapter

from mmtrackers import AutoTracker, Tracker, TrackerImageProcessor
from mmtrackers.hub.publish import TrainingFacts, push

AMG = next(row for row in ROWS if row.peft_type == "AMG_LORA")
BASE, ADAPTER = "org/ostrack-tiny", "org/seatrack-tiny-thermal"


def message_of(repo: str, **options: object) -> str:
    try:
        AutoTracker.from_pretrained(repo, **options)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def online(folder: Path) -> dict[str, object]:
    """Push a base and two states of an adapter, pull them in every way."""
    found: dict[str, object] = {}
    tiny_ostrack().save_pretrained(folder / "base")
    TrackerImageProcessor(search_size=64, template_size=32).save_pretrained(folder / "base")
    found["base url"] = push(folder / "base", BASE, card=TrainingFacts(data="made-up pictures", samples=1234))
    model = with_adapter(AMG, folder / "base")
    model.save_pretrained(folder / "adapter")
    feed = inputs(model)
    first = maps(model, feed)
    found["url"] = push(folder / "adapter", ADAPTER, base_model=BASE)
    first_commit = HfApi().model_info(ADAPTER).sha
    scramble(model, seed=9)
    model.save_pretrained(folder / "adapter")
    second = maps(model, feed)
    push(folder / "adapter", ADAPTER, base_model=BASE)

    base = AutoTracker.from_pretrained(BASE)
    local = AutoTracker.from_pretrained(folder / "base")
    one_stream = inputs(base)
    found["base is the same"] = torch.equal(maps(base, one_stream), maps(local, one_stream))
    pulled = AutoTracker.from_pretrained(ADAPTER)
    found["class"] = type(pulled).__name__
    found["adapter is the same"] = torch.equal(maps(pulled, feed), second)
    pinned = AutoTracker.from_pretrained(ADAPTER, revision=first_commit)
    found["pinned is the first"] = torch.equal(maps(pinned, feed), first) and not torch.equal(first, second)
    base_commit = HfApi().model_info(BASE).sha
    both = AutoTracker.from_pretrained(ADAPTER, revision=first_commit, base_revision=base_commit)
    found["both pinned"] = torch.equal(maps(both, feed), first)
    tracker = Tracker.from_pretrained(ADAPTER)
    found["processor"] = [tracker.image_processor.search_size, tracker.image_processor.template_size]
    pulled.save_pretrained(folder / "saved-again")
    found["base of the saved again"] = json.loads((folder / "saved-again/adapter_config.json").read_text())[
        "base_model_name_or_path"
    ]
    found["bad revision"] = message_of(ADAPTER, revision="no-such-tag")
    found["bad base revision"] = message_of(ADAPTER, base_revision="no-such-tag")
    found["missing repository"] = message_of("org/no-such-model")
    try:
        push(folder / "adapter", "org/orphan", base_model="org/base-that-is-gone")
    except ValueError as error:
        found["refused"] = str(error)
    with patch.object(HfApi, "repo_exists", return_value=True):  # it goes later
        push(folder / "adapter", "org/orphan", base_model="org/base-that-is-gone")
    found["missing base"] = message_of("org/orphan")
    found["orphan with base_model="] = torch.equal(
        maps(AutoTracker.from_pretrained("org/orphan", base_model=BASE), feed), second
    )
    torch.save({"commit": first_commit, "first": first, "second": second, "feed": feed}, folder / "expected.pt")
    return found


def offline(folder: Path, **options: object) -> dict[str, object]:
    """The same repositories from the cache."""
    expected = torch.load(folder / "expected.pt", weights_only=True)
    feed = expected["feed"]
    pulled = AutoTracker.from_pretrained(ADAPTER, **options)
    pinned = AutoTracker.from_pretrained(ADAPTER, revision=expected["commit"], **options)
    return {
        "class": type(AutoTracker.from_pretrained(BASE, **options)).__name__,
        "adapter is the same": torch.equal(maps(pulled, feed), expected["second"]),
        "pinned is the first": torch.equal(maps(pinned, feed), expected["first"]),
        "not cached": message_of("org/never-seen", **options),
        "base not cached": message_of("org/orphan", **options),
    }
