"""`pipeline("visual-object-tracking")`: the same boxes as `Tracker`, from every kind of repository and source."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft_rows import ROWS, tiny_ostrack, with_adapter
from transformers import pipeline

from mmtrackers import Tracker, TrackerImageProcessor, VisualObjectTrackingPipeline
from mmtrackers.hub.publish import save_adapter
from mmtrackers.tracking.sources import open_source
from mmtrackers.tracking.video import VideoWriter

TASK = "visual-object-tracking"
BOX = [60.0, 40, 30, 20]
TWO = [BOX, [20.0, 30, 25, 40]]
RNG = np.random.default_rng(0)
RGB, THERMAL = (RNG.integers(0, 255, (5, 120, 160, 3), dtype=np.uint8) for _ in range(2))
AMG = next(row for row in ROWS if row.peft_type == "AMG_LORA")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a video."""
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_ostrack().save_pretrained(folder / "base")
    TrackerImageProcessor(search_size=64, template_size=32).save_pretrained(folder / "base")
    with VideoWriter(folder / "clip.mp4") as writer:
        for frame in RGB:
            writer.write(frame)
    return folder


@pytest.fixture(scope="module")
def adapters(folders: Path) -> Path:
    """An adapter that names the base by its path, and the same one with a relative name."""
    folder = folders
    model = with_adapter(AMG, folder / "base")
    save_adapter(model, folder / "adapter")
    save_adapter(model, folder / "relative")
    for name in ("adapter", "relative"):
        # other crops than the base's: an adapter's own processor is the one to use
        TrackerImageProcessor(search_size=64, template_size=32, search_factor=3.0).save_pretrained(folder / name)
        config = folder / name / "adapter_config.json"
        base = str(folder / "base") if name == "adapter" else "../base"
        recorded = next(line for line in config.read_text().splitlines() if "base_model_name_or_path" in line)
        config.write_text(config.read_text().replace(recorded, f'  "base_model_name_or_path": "{base}",'))
    return folder


def expected(tracker: Tracker, frames: Any, box: Any) -> list[Any]:
    """What a session says, frame by frame, as the pipeline words it."""
    session = tracker.start(frames[0], box)
    found = [session.initial_prediction(), *map(session.update, frames[1:])]
    named = [[{"frame": k} | p.to_dict() for p in (f if isinstance(f, list) else [f])] for k, f in enumerate(found)]
    return named if isinstance(found[0], list) else [one for (one,) in named]


@pytest.mark.parametrize("box", [BOX, TWO], ids=["one box", "two boxes"])
@pytest.mark.parametrize("options", [{}, {"pack": True}, {"dtype": torch.bfloat16}], ids=["plain", "packed", "bf16"])
def test_boxes_are_those_of_tracker(folders: Path, box: Any, options: dict[str, Any]) -> None:
    track = pipeline(TASK, model=str(folders / "base"), device="cpu", **options)
    assert isinstance(track, VisualObjectTrackingPipeline)
    found = list(track(RGB, box=box))
    assert found == expected(Tracker.from_pretrained(str(folders / "base"), **options), RGB, box)
    assert found != list(track(RGB[::-1], box=box))


def test_weights_are_float32_unless_asked_for(folders: Path) -> None:
    assert pipeline(TASK, model=str(folders / "base"), device="cpu").tracker.dtype == torch.float32


@pytest.mark.parametrize("name", ["adapter", "relative"])
def test_an_adapter_brings_base_and_processor(adapters: Path, name: str) -> None:
    pairs = [{"rgb": rgb, "thermal": thermal} for rgb, thermal in zip(RGB, THERMAL, strict=True)]
    if name == "adapter":
        track = pipeline(TASK, model=str(adapters / name), device="cpu")
    else:
        track = VisualObjectTrackingPipeline.from_pretrained(str(adapters / name), device="cpu")
    assert track.image_processor.search_factor == 3.0
    known = expected(Tracker.from_pretrained(str(adapters / name)), pairs, BOX)
    assert list(track(pairs, box=BOX)) == known
    assert list(track(RGB, box=BOX, thermal=THERMAL)) == known


def test_results_come_as_they_are_found(folders: Path) -> None:
    seen = []

    def camera() -> Any:
        for frame in RGB:
            seen.append(len(seen))
            yield frame

    found = pipeline(TASK, model=str(folders / "base"), device="cpu")(camera(), box=BOX)
    assert next(found)["score"] == 1.0 and next(found)["frame"] == 1
    assert seen == [0, 1]


def test_videos_and_their_length(folders: Path) -> None:
    track = pipeline(TASK, model=str(folders / "base"), device="cpu", max_frames=3)
    clip = str(folders / "clip.mp4")
    decoded = [frame["rgb"] for frame in open_source(clip)]
    known = expected(Tracker.from_pretrained(str(folders / "base")), decoded, BOX)
    assert list(track(clip, box=BOX)) == known[:3]
    assert list(track(clip, box=BOX, max_frames=2)) == known[:2]
    assert list(track(open_source(clip), box=BOX, max_frames=9)) == known


def test_what_cannot_be_tracked_is_said(folders: Path) -> None:
    track = pipeline(TASK, model=str(folders / "base"), device="cpu")
    with pytest.raises(ValueError, match="where is the target in the first frame"):
        track(RGB)
    with pytest.raises(ValueError, match="thermal and depth were given"):
        track(RGB, box=BOX, thermal=THERMAL, depth=THERMAL)
    with pytest.raises(TypeError, match="sonar"):
        list(track(RGB, box=BOX, sonar=THERMAL))
    with pytest.raises(ValueError, match="more than 3 rgb frames but the video has 3 thermal frames"):
        list(track(RGB, box=BOX, thermal=THERMAL[:3]))
    with pytest.raises(ValueError, match="there is no no-such-video"):
        track("no-such-video.mp4", box=BOX)
    exported = folders / "exported"
    exported.mkdir()
    (exported / "onnx_config.json").write_text("{}")
    with pytest.raises(ValueError, match="exported is exported, and a pipeline needs the model itself"):
        VisualObjectTrackingPipeline.from_pretrained(str(exported))


def test_saved_and_loaded_again(folders: Path, tmp_path: Path) -> None:
    track = pipeline(TASK, model=str(folders / "base"), device="cpu")
    track.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert list(pipeline(TASK, model=str(tmp_path), device="cpu")(RGB, box=BOX)) == list(track(RGB, box=BOX))


def test_an_adapter_saved_and_loaded_again(adapters: Path, tmp_path: Path) -> None:
    track = pipeline(TASK, model=str(adapters / "adapter"), device="cpu")
    track.save_pretrained(tmp_path)
    # saving names a local base relative to the folder
    again = VisualObjectTrackingPipeline.from_pretrained(str(tmp_path), device="cpu")
    assert list(again(RGB, box=BOX, thermal=THERMAL)) == list(track(RGB, box=BOX, thermal=THERMAL))
