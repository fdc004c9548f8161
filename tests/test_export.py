"""ONNX graphs: the boxes of the tracker they were made of, through the same session and without this package."""

import json
from pathlib import Path

import cv2
import example_scripts
import numpy as np
import pytest
import torch
from model_rows import ROWS, scramble
from tracking_stub import frame, moving
from typer.testing import CliRunner

from mmtrackers import LoRATConfig, LoRATForTracking, SPMTrackConfig, SPMTrackForTracking, Tracker
from mmtrackers.cli import app
from mmtrackers.tuners.tmoe.config import tmoe_config

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install 'mmtrackers[onnx]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'mmtrackers[onnx]'")

from mmtrackers.conversion.onnx import export_onnx, quantize

TINY_DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def dinov2_family(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "lorat":
        return LoRATForTracking(LoRATConfig(**TINY_DINO, search_size=112, template_size=56)).eval()
    model = SPMTrackForTracking(SPMTrackConfig(**TINY_DINO, search_size=112, template_size=56))
    model.requires_grad_(False).add_adapter(tmoe_config(r=2))
    scramble(model, 0.05, trainable_only=True)
    return model.eval()


def tracker_of(name: str) -> Tracker:
    rows = {row.name: row for row in ROWS}
    model = rows[name].build() if name in rows else dinov2_family(name)
    return Tracker(model, model.image_processor())


def video(tracker: Tracker, count: int = 6) -> tuple[list[dict], np.ndarray]:
    """A patch that moves over a noisy ground, with the second stream that the tracker reads."""
    ground = np.random.default_rng(0).integers(0, 120, (120, 160, 3), dtype=np.uint8)
    _, boxes = moving(count)
    kind = None if tracker.streams == 1 else "depth" if tracker.modality == "any" else tracker.modality
    made = [frame(tuple(int(v) for v in box), modality=kind) for box in boxes]
    return [one | {"rgb": np.where(one["rgb"] == 100, ground, one["rgb"])} for one in made], boxes


@pytest.mark.slow
@pytest.mark.parametrize("name", [row.name for row in ROWS] + ["lorat", "spmtrack"])
def test_an_exported_tracker_gives_the_same_boxes(name: str, tmp_path: Path) -> None:
    tracker = tracker_of(name)
    frames, boxes = video(tracker)
    export_onnx(tracker, tmp_path / "out")
    exported = Tracker.from_pretrained(str(tmp_path / "out"))
    assert (exported.streams, exported.modality) == (tracker.streams, tracker.modality)
    targets = [boxes[0], boxes[0] + [30, 10, 0, 0]]
    for start in (boxes[0], targets):
        found, expected = (list(one.track(frames, start)) for one in (exported, tracker))
        for mine, theirs in zip(np.ravel(found), np.ravel(expected), strict=True):
            assert np.abs(mine.box - theirs.box).max() <= 0.01
            assert abs(mine.score - theirs.score) <= 1e-4
    quantize(tmp_path / "out")
    small = Tracker.from_pretrained(str(tmp_path / "out"))
    assert np.isfinite([p.box for p in small.track(frames, boxes[0])]).all()


@pytest.mark.slow
def test_command_int8_card_and_the_script_without_this_package(tmp_path: Path) -> None:
    tracker = tracker_of("ostrack-conv")
    tracker.model.save_pretrained(tmp_path / "model")
    tracker.image_processor.save_pretrained(tmp_path / "model")
    for options in ([], ["--int8"]):
        out = tmp_path / f"out{len(options)}"
        done = CliRunner().invoke(app, ["export", str(tmp_path / "model"), str(out), *options])
        assert done.exit_code == 0 and f"--model {out}" in done.output
        assert {p.name for p in out.iterdir()} == {
            "README.md", "onnx_config.json", "preprocessor_config.json", "search.onnx", "template.onnx",
        }  # fmt: skip
    assert "in int8" in (tmp_path / "out1" / "README.md").read_text()
    plain, small = (tmp_path / out / "search.onnx" for out in ("out0", "out1"))
    assert small.stat().st_size < plain.stat().st_size
    frames, boxes = video(tracker)
    expected = [p.box for p in tracker.track(frames, boxes[0])]
    where = ["--box", "40,50,24,20", "--model", str(tmp_path / "out0"), "--output", str(tmp_path / "tracked")]
    (tmp_path / "pictures").mkdir()
    for i, one in enumerate(frames):
        cv2.imwrite(str(tmp_path / "pictures" / f"{i}.png"), one["rgb"][..., ::-1])
    done = CliRunner().invoke(app, ["track", str(tmp_path / "pictures"), *where])
    assert done.exit_code == 0 and "is packed" not in done.output
    found = np.loadtxt(tmp_path / "tracked" / "pictures_tracked.txt", delimiter=",")
    assert np.abs(found - expected).max() <= 0.01
    script = example_scripts.load("run_onnx").OnnxTracker(tmp_path / "out0")
    script.start(frames[0]["rgb"], boxes[0])
    for one, box in zip(frames[1:], expected[1:], strict=True):
        assert np.abs(script.update(one["rgb"])[0] - box).max() <= 0.01
    found = [p.box for p in Tracker.from_pretrained(str(tmp_path / "out1")).track(frames, boxes[0])]
    assert np.isfinite(found).all()
    read = list(example_scripts.load("run_onnx").frames_of(str(tmp_path / "pictures")))
    assert all(np.array_equal(a, b["rgb"]) for a, b in zip(read, frames, strict=True))
    check_damage(tmp_path / "out0")


@pytest.mark.slow
def test_the_script_says_where_a_target_is_gone(tmp_path: Path) -> None:
    tracker = tracker_of("ostrack")
    frames, boxes = video(tracker)
    raw = [p.score for p in tracker.track(frames, boxes[0])][1:]
    tracker.image_processor.calibration = [0.2, 1.0, -3.0]
    sure = [p.score for p in tracker.track(frames, boxes[0])][1:]
    tracker.image_processor.absent_below = float(np.median(sure))
    export_onnx(tracker, tmp_path / "out")
    expected = list(Tracker.from_pretrained(str(tmp_path / "out")).track(frames, boxes[0]))
    assert len({p.present for p in expected}) == 2 and not np.allclose(raw, sure)
    script = example_scripts.load("run_onnx").OnnxTracker(tmp_path / "out")
    script.start(frames[0]["rgb"], boxes[0])
    for one, right in zip(frames[1:], expected[1:], strict=True):
        box, score = script.update(one["rgb"])
        assert np.abs(box - right.box).max() <= 0.01 and abs(score - right.score) <= 1e-4


@pytest.mark.parametrize(("arguments", "message"), [
    (["out", "clip.mp4", "a,b,c,d"], "argument box: 'a,b,c,d' is not x,y,width,height in pixels"),
    (["out", "clip.mp4", "1,2,nan,4"], "argument box"), (["out", "clip.mp4", "1,2,0,4"], "argument box"),
    (["out", "clip.mp4", "1,2,3,4"], "clip.mp4 has no frame"),
])
def test_wrong_arguments_of_the_script(tmp_path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["run_onnx.py", *arguments])
    script = example_scripts.load("run_onnx")
    with pytest.raises(SystemExit) as end:
        script.main()
    assert message in f"{end.value}{capsys.readouterr().err}"
    with pytest.raises(SystemExit, match=r"nowhere holds no onnx_config\.json: give the folder"):
        script.OnnxTracker("nowhere")


def check_damage(folder: Path) -> None:
    with pytest.raises(ValueError, match="is exported: pack, dtype, device, base_model are settled"):
        Tracker.from_pretrained(str(folder), pack=True)
    with pytest.raises(OSError, match="is not an empty folder: choose another one"):
        export_onnx(tracker_of("ostrack"), folder)
    with pytest.raises(ValueError, match=r"opset 99 cannot be written .*use 20"):
        export_onnx(tracker_of("ostrack"), folder.with_name("new"), opset=99)
    assert not folder.with_name("new").exists()
    record = json.loads((folder / "onnx_config.json").read_text())
    record["config"]["search_size"] = 96
    (folder / "onnx_config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"takes \[1, 1, 3, 64, 64\], but .* says search_size 96"):
        Tracker.from_pretrained(str(folder))
    (folder / "search.onnx").write_bytes(b"cut")
    with pytest.raises(OSError, match=r"search.onnx cannot be opened .*export the tracker again"):
        Tracker.from_pretrained(str(folder))
    (folder / "onnx_config.json").write_text("{}")
    with pytest.raises(ValueError, match="config, template_policy, reads_template_mask, state is missing or damaged"):
        Tracker.from_pretrained(str(folder))


def test_a_packed_tracker_is_not_exported(tmp_path: Path) -> None:
    tracker = tracker_of("ostrack")
    tracker.model.pack()
    with pytest.raises(ValueError, match=r"only a plain float32 model on the CPU can be exported"):
        export_onnx(tracker, tmp_path)
