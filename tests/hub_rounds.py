"""The two halves of the Hub round trip; each runs in a process of its own (see `local_hub.LocalHub.run`)."""

import json
import os
import time
from pathlib import Path
from unittest.mock import patch
from urllib.request import urlopen

import numpy as np
import torch
from huggingface_hub import HfApi
from peft import LoraConfig
from peft_rows import ROWS, inputs, maps, scramble, tiny_ostrack, with_adapter
from transformers import pipeline

from mmtrackers import AutoTracker, SEATrackForTracking, Tracker, TrackerImageProcessor, VisualObjectTrackingPipeline
from mmtrackers.hub.publish import TrainingFacts, push

AMG = next(row for row in ROWS if row.peft_type == "AMG_LORA")
BASE, ADAPTER = "org/ostrack-tiny", "org/seatrack-tiny-thermal"


def message_of(repo: str, **options: object) -> str:
    try:
        AutoTracker.from_pretrained(repo, **options)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def piped(revision: str) -> list[bool]:
    """Whether the pipeline finds the same boxes as `Tracker`, newest and pinned, and whether these differ."""
    random = np.random.default_rng(0)
    frames = [{name: random.integers(0, 255, (120, 160, 3), dtype=np.uint8) for name in ("rgb", "thermal")}
              for _ in range(4)]  # fmt: skip
    boxes = []
    for options in ({}, {"revision": revision}):
        tracker = Tracker.from_pretrained(ADAPTER, **options)
        in_class = VisualObjectTrackingPipeline.from_pretrained(ADAPTER, device="cpu", **options)
        track = pipeline("visual-object-tracking", ADAPTER, device="cpu", model_kwargs={"adapter_kwargs": options})
        boxes.append([found.box.tolist() for found in tracker.track(frames, [60, 40, 30, 20])])
        for piped in (in_class, track):
            boxes.append([found["box"] for found in piped(frames, box=[60, 40, 30, 20])])
    return [boxes[0] == boxes[1] == boxes[2], boxes[3] == boxes[4] == boxes[5], boxes[0] != boxes[3]]


def online(folder: Path) -> dict[str, object]:
    """Push a base and two states of an adapter, pull them in every way."""
    found: dict[str, object] = {}
    tiny_ostrack().save_pretrained(folder / "base")
    TrackerImageProcessor(search_size=64, template_size=32, search_factor=9.0).save_pretrained(folder / "base")
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
    found["pipeline"] = piped(first_commit)
    pulled.save_pretrained(folder / "saved-again")
    found["base of the saved again"] = json.loads((folder / "saved-again/adapter_config.json").read_text())[
        "base_model_name_or_path"
    ]
    found["by its class"] = type(SEATrackForTracking.from_pretrained(ADAPTER)).__name__
    found |= crops_of_hub_bases(folder, base_commit)
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


def crops_of_hub_bases(folder: Path, commit: str) -> dict[str, object]:
    """Whose crop settings go with a tracker: search factors."""
    elsewhere = folder / "another-cache"
    trained = SEATrackForTracking.from_base(BASE)
    trained.save_pretrained(folder / "trained")
    general = AutoTracker.from_base(BASE, modality="rgb", adapter_config=LoraConfig(target_modules=["q_proj"]),
                                    revision=commit, cache_dir=elsewhere)  # fmt: skip
    general.save_pretrained(folder / "general")
    TrackerImageProcessor(search_size=64, template_size=32, search_factor=3.0).save_pretrained(folder / "base")
    push(folder / "base", BASE, card=TrainingFacts(data="made-up pictures", samples=1234))
    bare = folder / "adapter" / "preprocessor_config.json"
    bare.unlink()
    config = folder / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"revision": commit}))
    push(folder / "adapter", "org/of-an-older-base", base_model=BASE)
    HfApi().create_repo("org/two-in-one")
    for name, factor in (("", 2.0), ("sub", 5.0)):
        model = folder / "two" / name
        tiny_ostrack().save_pretrained(model)
        TrackerImageProcessor(search_size=64, template_size=32, search_factor=factor).save_pretrained(model)
    HfApi().upload_folder(repo_id="org/two-in-one", folder_path=folder / "two")

    def factor(repo: str, **options: object) -> float:
        return Tracker.from_pretrained(repo, **options).image_processor.search_factor

    def saved(name: str) -> float:
        return json.loads((folder / name / "preprocessor_config.json").read_text())["search_factor"]

    return {
        "from_base": saved("trained"),
        "from_base in another cache": saved("general"),
        "other cache was used": (elsewhere / "models--org--ostrack-tiny").is_dir(),
        "the base as it is now": factor(BASE),
        "recorded revision": factor("org/of-an-older-base"),
        "base revision": factor("org/of-an-older-base", base_revision="main"),
        "root": factor("org/two-in-one"),
        "subfolder": factor("org/two-in-one", subfolder="sub"),
    }


def faults(folder: Path) -> dict[str, str]:
    """What loading says when the Hub fails: with everything in the cache, and with nothing."""
    endpoint, found = os.environ["HF_ENDPOINT"], {}

    def fault(kind: str, where: str = "/api/models/org") -> None:
        urlopen(f"{endpoint}/fault/{kind}/{where.lstrip('/')}").close()

    for kind in ("cut", "stall", "html", "500", "401", "403"):
        for name, options in (("cached", {}), ("fresh", {"cache_dir": folder / kind})):
            fault(kind, "models/org")
            begun = time.monotonic()
            found[f"{kind} {name}"] = message_of(ADAPTER, **options)
            found[f"{kind} {name} seconds"] = time.monotonic() - begun
    for kind in ("cut", "500"):
        fault(kind, "models/org/ostrack-tiny")
        found[f"{kind} of the base"] = message_of(ADAPTER, cache_dir=folder / f"base-{kind}")
        fault(kind, "model.safetensors")
        found[f"{kind} of the base's file"] = message_of(BASE, cache_dir=folder / f"file-{kind}")
    fault("none", "nowhere")
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
