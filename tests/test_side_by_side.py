"""Several adapters on one base: switched per video, loaded once, independent of one another."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from model_rows import TINY, scramble, tiny_adapter

from mmtrackers import (
    AutoTracker,
    OSTrackConfig,
    OSTrackForTracking,
    PATrackForTracking,
    SEATrackForTracking,
    Tracker,
    TrackerImageProcessor,
)

SIDE = {"rgb": (96, 128, 3), "thermal": (96, 128), "depth": (96, 128)}
BOX = [40.0, 30.0, 24.0, 20.0]


def frames(modality: str, count: int = 6) -> list[dict[str, np.ndarray]]:
    random, kind = np.random.default_rng(3), np.uint16 if modality == "depth" else np.uint8
    return [
        {
            "rgb": random.integers(0, 255, SIDE["rgb"], np.uint8),
            modality: random.integers(0, 255, SIDE[modality], kind),
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A base and three adapters on it, two of SEATrack's type and one of PATrack's."""
    root = tmp_path_factory.mktemp("side")
    torch.manual_seed(0)
    base = OSTrackForTracking(OSTrackConfig(**TINY, elimination_layers=[]))
    base.save_pretrained(root / "base")
    TrackerImageProcessor(template_size=32, search_size=64).save_pretrained(root / "base")
    for number, modality in enumerate(("thermal", "depth")):
        model = SEATrackForTracking.from_base(root / "base", modality, tiny_adapter())
        for _ in range(number + 1):
            scramble(model, 0.3, trainable_only=True)
        model.save_pretrained(root / modality)
    PATrackForTracking.from_base(root / "base", "thermal").save_pretrained(root / "other")
    return root


def boxes(tracker: Tracker, modality: str, adapter: str | None = None) -> np.ndarray:
    video = frames(modality)
    session = tracker.start(video[0], BOX, adapter=adapter)
    return np.stack([session.update(frame).box for frame in video[1:]])


def test_adapters_are_chosen_per_video(folders: Path) -> None:
    alone = {name: boxes(Tracker.from_pretrained(str(folders / name)), name) for name in ("thermal", "depth")}
    tracker = Tracker.from_pretrained(str(folders / "thermal"))
    tracker.add_adapter(str(folders / "depth"), "depth")
    for name, adapter in (("depth", "depth"), ("thermal", "default"), ("depth", "depth"), ("thermal", None)):
        np.testing.assert_array_equal(boxes(tracker, name, adapter), alone[name])
    assert not np.array_equal(alone["thermal"], alone["depth"])


def test_a_session_keeps_its_adapter_whatever_is_switched(folders: Path) -> None:
    tracker = Tracker.from_pretrained(str(folders / "thermal"))
    expected = boxes(tracker, "thermal")
    tracker.add_adapter(str(folders / "depth"), "depth")
    video = frames("thermal")
    session = tracker.start(video[0], BOX)
    found = []
    for index, frame in enumerate(video[1:]):
        (tracker.model.set_adapter("depth"), tracker.model.disable_adapters())[index % 2]
        found.append(session.update(frame).box)
    np.testing.assert_array_equal(np.stack(found), expected)
    weights = {id(parameter) for parameter in tracker.model.parameters()}
    assert {id(parameter) for parameter in session.model.parameters()} == weights


def test_two_threads_with_two_adapters(folders: Path) -> None:
    tracker = Tracker.from_pretrained(str(folders / "thermal"))
    tracker.add_adapter(str(folders / "depth"), "depth")
    names = {"default": "thermal", "depth": "depth"}
    expected = {adapter: boxes(tracker, name, adapter) for adapter, name in names.items()}
    found: dict[tuple[str, int], np.ndarray] = {}

    def run(adapter: str, number: int) -> None:
        found[adapter, number] = boxes(tracker, names[adapter], adapter)

    threads = [threading.Thread(target=run, args=(adapter, number)) for number in range(3) for adapter in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for (adapter, _), result in found.items():
        np.testing.assert_array_equal(result, expected[adapter])


def test_another_type_shares_the_bases_memory(folders: Path) -> None:
    """A second model on the same base adds its adapter to the memory and nothing else."""
    base = AutoTracker.from_pretrained(folders / "base")
    models = [AutoTracker.from_pretrained(folders / name, base_model=base) for name in ("thermal", "other")]

    def storages(*modules: torch.nn.Module) -> dict[int, int]:
        return {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for module in modules
            for tensor in (*module.parameters(), *module.buffers())
        }

    own = [sum(storages(model).values()) - sum(storages(base).values()) for model in models]
    assert sum(storages(base, *models).values()) == sum(storages(base).values()) + sum(own)
    assert all(extra > 0 for extra in own)


def test_what_cannot_stand_side_by_side_is_named(folders: Path) -> None:
    tracker = Tracker.from_pretrained(str(folders / "thermal"))
    video = frames("thermal")
    plain = Tracker.from_pretrained(str(folders / "base"))
    for call, message in (
        (lambda: tracker.add_adapter(str(folders / "other"), "other"), "is a PROGRESSIVE adapter for mmt_patrack"),
        (lambda: tracker.add_adapter(str(folders / "depth"), "default"), "an adapter 'default' already"),
        (lambda: tracker.add_adapter(str(folders / "depth"), "head"), "also the name of a module"),
        (lambda: tracker.start(video[0], BOX, adapter="night"), "no adapter 'night'; loaded: default"),
        (lambda: plain.add_adapter(str(folders / "depth"), "x"), "the model has no adapter of its own"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert list(tracker.model.peft_config) == ["default"]
    tracker.model.pack()
    assert tracker.start(video[0], BOX).model is tracker.model
    with pytest.raises(ValueError, match="the model is packed"):
        tracker.add_adapter(str(folders / "depth"), "depth")
