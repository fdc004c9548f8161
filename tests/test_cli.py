"""The command line: files that a run leaves, messages, exit codes."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import warnings

import av
import cv2
import numpy as np
import pytest
import tracking_stub
from tracking_stub import RedPatchModel, moving
from typer.testing import CliRunner

import mmtrackers
from mmtrackers import OSTrackConfig, OSTrackForTracking, Tracker, TrackerImageProcessor, cli
from mmtrackers.pretrained import default_checkpoint
from mmtrackers.tracking.video import VideoWriter


@pytest.fixture
def stub(monkeypatch):
    """A tracker of red patches in the place of every checkpoint; its model, which records what was asked for."""
    model = RedPatchModel()

    def from_pretrained(repo, dtype=None, device=None, pack=False, base_model=None, **kwargs):
        model.asked = {"repo": repo, "dtype": dtype, "device": device, "pack": pack, "base_model": base_model}
        return Tracker(model, tracking_stub.processor(), **kwargs)

    monkeypatch.setattr(Tracker, "from_pretrained", from_pretrained)
    return model


def call(*arguments):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def error_of(*arguments):
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.output
    return lines[0]


def write_folder(folder, frames, boxes=None, modality="rgb"):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        image = frame[modality]
        cv2.imwrite(str(folder / f"{i:04d}.png"), image[..., ::-1] if image.ndim == 3 else image)
    if boxes is not None:
        (folder / "groundtruth.txt").write_text("".join(",".join(map(str, b)) + "\n" for b in boxes))
    return folder


@pytest.fixture
def sequence(tmp_path):
    """A folder of 8 frames with ground truth; the target is absent in frame 4."""
    frames, boxes = moving(8)
    boxes[4] = np.nan
    return write_folder(tmp_path / "walk", frames, boxes)


def test_a_sequence_with_its_own_box(stub, sequence, tmp_path):
    result = call("track", sequence, "--model", "any", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    mean = float(re.search(r"mean overlap ([\d.]+) over the frames where the target is present", result.stdout)[1])
    assert 0.85 < mean <= 1
    lines = (tmp_path / "out" / "walk_tracked.txt").read_text().splitlines()
    assert len(lines) == 8 and lines[0] == "40.0000,50.0000,24.0000,20.0000"
    record = json.loads((tmp_path / "out" / "walk_tracked.json").read_text())
    (target,) = record["targets"]
    assert len(target["boxes_xywh"]) == len(target["scores"]) == len(target["present"]) == 8
    assert target["scores"][:2] == [1.0, 0.8] and record["settings"]["model"] == "any"
    assert record["mean_overlap"] == pytest.approx(mean, abs=6e-4) and record["stopped"] is None
    assert cv2.imread(str(tmp_path / "out" / "walk_tracked.png")) is not None
    with av.open(str(tmp_path / "out" / "walk_tracked.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8


def test_several_targets_write_a_file_each(stub, tmp_path):
    frames, _ = moving(3)
    folder = write_folder(tmp_path / "two", frames)
    boxes = ("--box", "40,50,24,20", "--box", "50 60 20 20")
    result = call("track", folder, "--model", "m", *boxes, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert stub.batches == [(2, 1, 3, 64, 64)] * 2
    assert (tmp_path / "two_tracked_2.txt").read_text().splitlines()[0] == "50.0000,60.0000,20.0000,20.0000"
    assert len(json.loads((tmp_path / "two_tracked.json").read_text())["targets"]) == 2
    assert not (tmp_path / "two_tracked.png").exists(), "no ground truth, no plot"


def test_a_sequence_begins_where_its_target_is_first_seen(stub, tmp_path):
    frames, boxes = moving(6)
    boxes[:2] = np.nan
    folder = write_folder(tmp_path / "late", frames, boxes)
    assert call("track", folder, "--model", "m", "--output", tmp_path).exit_code == 0
    assert (tmp_path / "late_tracked_scores.txt").read_text().split() == ["nan"] * 2 + ["1.000000"] + ["0.800000"] * 3
    lines = (tmp_path / "late_tracked.txt").read_text().splitlines()
    assert len(lines) == 6 and lines[1] == "0.0000,0.0000,0.0000,0.0000" and lines[2].startswith("44.0000,52.0000")
    assert json.loads((tmp_path / "late_tracked.json").read_text())["first_frame"] == 2


def test_two_folders_and_what_is_asked_of_the_loader(stub, tmp_path):
    stub.config.streams, stub.config.modality = 2, "thermal"
    frames = [tracking_stub.frame((40, 50, 24, 20), modality="thermal")] * 3
    rgb, thermal = (write_folder(tmp_path / "walk" / m, frames, modality=m) for m in ("rgb", "thermal"))
    options = ["--box", "40,50,24,20", "--model", "m", "--dtype", "bf16", "--pack"]
    options += ["--base-model", "b", "--max-frames", "2"]
    result = call("track", rgb, "--thermal", thermal, "--output", tmp_path, *options)
    assert result.exit_code == 0, result.output
    assert stub.asked == {"repo": "m", "dtype": "bf16", "device": "cpu", "pack": True, "base_model": "b"}
    assert len((tmp_path / "walk_tracked.txt").read_text().splitlines()) == 2
    with av.open(str(tmp_path / "walk_tracked.mp4")) as container:
        assert container.streams.video[0].width == 324


def test_a_missing_stream(stub, tmp_path):
    stub.config.streams, stub.config.modality = 2, "event"
    folder = write_folder(tmp_path / "v", moving(3)[0])
    arguments = ("track", folder, "--model", "m", "--box", "40,50,24,20", "--output", tmp_path)
    assert "m reads rgb and event, and v has only rgb: give --event FOLDER" in error_of(*arguments)
    with pytest.warns(UserWarning, match="rgb picture is fed in its place"):
        result = call(*arguments, "--allow-missing")
    assert result.exit_code == 0 and "no event stream: the RGB stream alone is fed" in result.stderr


def test_warnings_show_no_line_of_code(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(cli, "app", lambda: None)
    cli.main()
    assert warnings.formatwarning("rgb is fed", UserWarning, "x.py", 3) == "warning: rgb is fed\n"


def test_one_frame_has_no_speed(stub, tmp_path):
    folder = write_folder(tmp_path / "v", moving(1)[0])
    result = call("track", folder, "--model", "m", "--box", "40,50,24,20", "--output", tmp_path)
    assert result.exit_code == 0 and "v: 1 frame\n" in result.stdout


def test_absent_targets_are_counted(stub, tmp_path):
    folder = write_folder(tmp_path / "v", moving(3)[0])
    arguments = ("--model", "m", "--box", "40,50,24,20", "--absent-below", "0.9", "--output", tmp_path)
    result = call("track", folder, *arguments)
    assert "reported as absent: 2 of 3 boxes" in result.stdout
    assert json.loads((tmp_path / "v_tracked.json").read_text())["targets"][0]["present"] == [True, False, False]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("1,2,3", "--box '1,2,3': expected four numbers"),
        ("", "--box '': expected four numbers"),
        ("a,b,c,d", "--box 'a,b,c,d': expected four numbers"),
        ("nan,1,2,3", "not finite"),
        ("10,10,-4,5", "has no area"),
        ("10,10,0,5", "has no area"),
        ("900,10,20,20", "lies outside the picture of 160 x 120"),
    ],
)
def test_boxes_that_cannot_be_used(stub, sequence, tmp_path, box, message):
    assert message in error_of("track", sequence, "--model", "m", f"--box={box}", "--output", tmp_path / "o")


def test_sources_that_cannot_be_used(stub, tmp_path):
    frames, _ = moving(3)
    folder = write_folder(tmp_path / "plain", frames)
    with_box = ("--model", "m", "--box", "40,50,24,20", "--output", tmp_path)
    assert "No annotation says it: give --box" in error_of("track", folder, "--model", "m", "--output", tmp_path)
    assert "there is no" in error_of("track", tmp_path / "none.mp4", *with_box)
    short = write_folder(tmp_path / "short", frames[:2])
    assert "frame 2 (0002.png) has no event frame" in error_of("track", folder, "--event", short, *with_box)
    both = error_of("track", folder, "--event", short, "--depth", short, *with_box)
    assert "--depth and --event were given" in both


def test_what_was_done_is_kept_when_a_source_breaks_off(stub, tmp_path):
    frames, _ = moving(6)
    folder = write_folder(tmp_path / "v", frames)
    cv2.imwrite(str(folder / "0003.png"), np.zeros((60, 60, 3), np.uint8))
    message = error_of("track", folder, "--model", "m", "--box", "40,50,24,20", "--output", tmp_path)
    assert "frame 3 is 60x60 pixels" in message and "3 frames, is kept" in message
    (folder / "0002.png").write_bytes(b"no image")
    arguments = ("track", folder, "--model", "m", "--box", "40,50,24,20", "--output", tmp_path)
    assert "v_tracked.txt): choose another --output, or --overwrite" in error_of(*arguments)
    message = error_of(*arguments, "--overwrite")
    assert "0002.png is not a readable image" in message
    assert len((tmp_path / "v_tracked.txt").read_text().splitlines()) == 2
    assert "0002.png" in json.loads((tmp_path / "v_tracked.json").read_text())["stopped"]


def test_interrupting_keeps_what_is_done(stub, sequence, tmp_path, monkeypatch):
    decode = stub.decode

    def interrupted(output, window):
        if len(stub.states) == 4:
            raise KeyboardInterrupt
        return decode(output, window)

    monkeypatch.setattr(stub, "decode", interrupted)
    result = call("track", sequence, "--model", "m", "--output", tmp_path)
    assert result.exit_code == 130 and "interrupted after 4 frames; what was done is kept" in result.stderr
    scores = (tmp_path / "walk_tracked_scores.txt").read_text().splitlines()
    assert scores == ["1.000000", "0.800000", "0.800000", "0.800000"]
    assert len((tmp_path / "walk_tracked.txt").read_text().splitlines()) == 4
    with av.open(str(tmp_path / "walk_tracked.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4


def test_the_default_model_follows_the_streams(stub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a folder without a checkout
    frames, boxes = moving(2)
    folder = write_folder(tmp_path / "v", frames, boxes)
    call("track", folder, "--output", tmp_path)
    assert stub.asked["repo"].endswith("ostrack-tiny")
    call("track", folder, "--thermal", folder, "--box", "40,50,24,20", "--output", tmp_path, "--overwrite")
    assert stub.asked["repo"].endswith("seatrack-tiny-thermal")
    with pytest.raises(ValueError, match=r"no checkpoint for 'sonar' .* only for rgb, depth, event"):
        default_checkpoint("sonar")


def test_the_sample_is_the_clip_of_the_package_unless_a_file_has_its_name(stub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("track", "sample", "--box", "353,396,53,148", "--max-frames", "2", "--output", tmp_path / "out")
    assert result.exit_code == 0 and (tmp_path / "out" / "pedestrians_tracked.txt").read_text().startswith("353")
    write_folder(tmp_path / "sample", *moving(2))
    call("track", "sample", "--output", tmp_path / "out")
    assert len((tmp_path / "out" / "sample_tracked.txt").read_text().splitlines()) == 2


# --------------------------------------------------------------------------------------------------------- for real


@pytest.fixture
def tiny(tmp_path):
    """A folder with a random OSTrack of very small size."""
    config = OSTrackConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_channels=16, template_size=32, search_size=64
    )
    OSTrackForTracking(config).save_pretrained(tmp_path / "tiny")
    TrackerImageProcessor(template_size=32, search_size=64).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_track_end_to_end_on_a_video_file(tiny, tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 20) as writer:
        for frame in moving(6)[0]:
            writer.write(frame["rgb"])
    arguments = ("--model", tiny, "--box", "40,50,24,20", "--output", tmp_path / "out")
    result = call("track", tmp_path / "clip.mp4", *arguments)
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "out" / "clip_tracked.txt").read_text().splitlines()
    found = [[float(v) for v in line.split(",")] for line in lines]
    assert len(found) == 6 and found[0] == [40, 50, 24, 20] and np.isfinite(found).all()
    with av.open(str(tmp_path / "out" / "clip_tracked.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == 20
    again = call("track", tmp_path / "clip.mp4", *arguments[:-1], tmp_path / "bf16", "--dtype", "bfloat16")
    assert again.exit_code == 0, again.output


def test_info_lists_what_there_is():
    shown = call("info").stdout
    assert "SEATrack    presets: seatrack-rgbt, seatrack-rgbd, seatrack-rgbe" in shown
    assert "AMG_LORA" in shown and "seatrack-tiny-event" in shown


def test_info_of_an_embedded_adapter():
    shown = call("info", "seatrack-tiny-thermal").stdout
    assert "G per frame and target" in shown and "license" in shown and "figures" in shown
    assert 1e9 < float(re.search(r"MACs +([\d.]+) G", shown)[1]) * 1e9 < 2e9


def test_info_of_a_full_tracker(tiny):
    result = call("info", tiny)
    assert "OSTrackForTracking (mmt_ostrack)" in result.stdout
    assert "template 32, search 64, patch 16 pixels" in result.stdout and "2 of width 32, 2 heads" in result.stdout
    count = sum(p.numel() for p in OSTrackForTracking.from_pretrained(tiny).parameters())
    assert f"{count:,}" in result.stdout


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--dtype", "int8", "dtype 'int8' is not a floating type"),
        ("--device", "gpu", "device 'gpu' is not one that torch knows"),
        ("--device", "cuda:77", "device 'cuda:77' cannot be used here"),
        ("--device", "meta", "device 'meta' cannot be used here (it holds no numbers)"),
        ("--absent-below", "2", "absent_below is a score from 0 to 1"),
        ("--base-model", "x", "not an adapter"),
    ],
)
def test_settings_that_cannot_be_used(tiny, sequence, tmp_path, option, value, message):
    assert message in error_of("track", sequence, "--model", tiny, option, value, "--output", tmp_path / "o")


def test_a_config_that_contradicts_itself(tiny):
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"streams": 2, "modality": "thermal"}))
    assert "Candidate elimination works with one stream only" in error_of("info", tiny)


def test_repositories_and_arguments_that_cannot_be_used(tmp_path):
    assert "neither config.json" in error_of("info", tmp_path)
    assert "There is no folder" in error_of("push", tmp_path / "none", "org/name")
    assert "none.pth" in error_of("convert", "ostrack", tmp_path / "none.pth", tmp_path / "out")
    assert "unknown system 'other'" in error_of("convert", "other", tmp_path / "none.pth", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    (tmp_path / "a.pth").write_text("x")
    full = error_of("convert", "ostrack", tmp_path / "a.pth", tmp_path / "full")
    assert "is not an empty folder: choose another one, or --force" in full


def test_an_adapter_without_its_base_names_the_option(tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(default_checkpoint("thermal"), folder)
    for command in (("info", folder), ("track", "sample", "--model", folder), ("export", folder, tmp_path / "out")):
        said = error_of(*command)
        assert "no " + str(tmp_path / "ostrack-tiny") in said and "Pass --base-model (Hub id" in said, said
    assert 'base_model="org/name"' not in (said := error_of("push", folder, "org/name")) and "--base-model" in said


HEAVY = ("torch", "transformers", "matplotlib", "av", "cv2")


def test_help_imports_nothing_heavy_and_names_the_commands():
    code = f"import sys; from mmtrackers import cli; print([name for name in {HEAVY} if name in sys.modules])"
    before = f"import sys; import mmtrackers; print([name for name in {HEAVY} if name in sys.modules])"
    loaded = [subprocess.run([sys.executable, "-c", c], capture_output=True, text=True).stdout for c in (code, before)]
    assert loaded[0] == loaded[1], "the commands bring in nothing that the package does not"
    result = call("--help")
    assert all(name in result.stdout for name in ("track", "info", "push", "convert", "Exit codes"))


@pytest.mark.parametrize("command", ["track", "evaluate", "info", "push", "convert"])
def test_every_command_has_help(command):
    result = call(command, "--help")
    assert result.exit_code == 0 and "Usage:" in result.stdout


def test_version_and_the_ways_to_start():
    for module in ("mmtrackers", "mmtrackers.cli"):
        done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
        assert done.stdout.split() == ["mmtrackers", mmtrackers.__version__], done.stderr


def _as_written(text):
    raise ValueError(text)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (lambda: _as_written("a bad\n  box"), "error: a bad box"),
        (lambda: os.stat("/none/x"), "error: [Errno 2] No such file or directory: '/none/x'"),
        (lambda: b"\xff".decode(), "error: 'utf-8' codec can't decode"),
        (lambda: np.zeros(2) + np.zeros(3), None),
        (lambda: list(zip([1], [], strict=True)), None),
        (lambda: {}["x"], None),
    ],
)
def test_only_what_a_user_can_mend_is_one_line(monkeypatch, fault, line):
    monkeypatch.setattr("mmtrackers.hub.auto.AutoTracker.from_pretrained", lambda *_, **__: fault())
    result = CliRunner().invoke(cli.app, ["info", "x"])
    if line is None:
        assert result.exit_code == 1 and not isinstance(result.exception, SystemExit) and "error:" not in result.output
    else:
        assert result.exit_code == 2 and result.stderr.startswith(line) and result.stderr.count("\n") == 1
        shown = CliRunner().invoke(cli.app, ["--debug", "info", "x"])
        assert isinstance(shown.exception, (ValueError, OSError)), "--debug lets the traceback through"


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch):
    def gone(*_, **__):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("mmtrackers.hub.auto.AutoTracker.from_pretrained", gone)
    result = CliRunner().invoke(cli.app, ["info", "x"])
    assert (result.exit_code, result.stderr) == (1, "")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_end_a_command_in_order(tmp_path, name, code):
    script = (
        "import os, signal, sys\nfrom mmtrackers import cli\nfrom mmtrackers.hub.auto import AutoTracker\n"
        # a script's background jobs ignore the one, nohup's the other
        "signal.signal(signal.SIGINT, signal.default_int_handler)\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"def wait(*_, **__):\n    os.kill(os.getpid(), signal.{name})\n    signal.pause()\n"
        "AutoTracker.from_pretrained = wait\nsys.argv[1:] = ['info', 'x']\ncli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == code and done.stderr.strip().splitlines()[-1] == "interrupted"


# --------------------------------------------------------------------------------------------------------- cameras


def write_pair(folder, count=3, sixteen=False):
    """RGB and a thermal camera of half the size beside it; the matrix between them."""
    pictures = np.random.default_rng(0).integers(0, 256, (12, 16), np.uint8)
    ground = cv2.resize(pictures, (160, 120), interpolation=cv2.INTER_CUBIC)
    matrix = np.array([[1.05, 0.01, 4.0], [-0.01, 1.02, 2.0], [0, 0, 1]])
    heat = cv2.warpPerspective(255 - ground, np.linalg.inv(matrix), (150, 110))
    frames, _ = moving(count)
    for frame in frames:
        frame["rgb"][...] = np.where(frame["rgb"][..., :1] == 255, frame["rgb"], ground[..., None])
        frame["thermal"] = heat.astype(np.uint16) * 4 + 7000 if sixteen else heat
    write_folder(folder / "rgb", frames)
    write_folder(folder / "heat", frames, modality="thermal")
    return matrix


def test_align_finds_a_matrix_and_track_uses_it(stub, tmp_path):
    stub.config.streams, stub.config.modality = 2, "thermal"
    true = write_pair(tmp_path)
    out = tmp_path / "rig.txt"
    result = call("align", tmp_path / "rgb", tmp_path / "heat", out)
    assert "the edges of 3 pairs agree by" in result.stdout
    found = np.loadtxt(out)
    corners = np.array([[[0, 0], [150, 0], [150, 110], [0, 110]]], float)
    apart = cv2.perspectiveTransform(corners, found) - cv2.perspectiveTransform(corners, true)
    assert np.linalg.norm(apart[0], axis=1).max() < 2
    assert cv2.imread(str(tmp_path / "rig.jpg")).shape == (120, 320, 3)
    place = ("track", tmp_path / "rgb", "--thermal", tmp_path / "heat", "--box", "40,50,24,20", "--output", tmp_path)
    assert "streams differ in size" in error_of(*place)
    call(*place, "--align", out, "--thermal-range", "0", "255")
    record = json.loads((tmp_path / f"{tmp_path.name}_tracked.json").read_text())
    assert record["settings"]["thermal_range"] == [0.0, 255.0] and record["settings"]["align"] == str(out)
    assert record["frames"] == 3
    assert f"{out} exists" in error_of("align", tmp_path / "rgb", tmp_path / "heat", out)


def test_align_by_points_and_what_it_refuses(tmp_path):
    write_pair(tmp_path, 1, sixteen=True)
    (tmp_path / "p.txt").write_text("10 10 0 0\n110 10 100 0\n10 110 0 100\n")
    pair = ("align", tmp_path / "rgb" / "0000.png", tmp_path / "heat" / "0000.png")
    result = call(*pair, tmp_path / "a.txt", "--points", tmp_path / "p.txt")
    assert "the points lie 0.0 pixels" in result.stdout
    np.testing.assert_allclose(np.loadtxt(tmp_path / "a.txt"), [[1, 0, 10], [0, 1, 10], [0, 0, 1]], atol=1e-9)
    cases = [
        ((*pair, "b.txt", "--points", tmp_path / "none.txt"), "none.txt cannot be read"),
        ((*pair, "b.txt", "--points", tmp_path / "p.txt", "--model", "homography"), "3 points are too few"),
        ((*pair, "b.jpg"), "b.jpg is where the picture would lie"),
        ((*pair, "b.txt", "--modality", "infrared"), "expected thermal, depth or event"),
        (("align", tmp_path / "rgb", pair[2], "b.txt"), "is a folder, but the other one is a file"),
        (("align", tmp_path / "rgb", tmp_path / "nothing", "b.txt"), "nothing is not there|is a folder"),
    ]
    for arguments, message in cases:
        assert re.search(message, error_of(*arguments))


def test_thermal_alone_is_read_in_the_place_of_rgb(stub, tmp_path):
    write_pair(tmp_path, sixteen=True)
    result = call("track", tmp_path / "heat", "--box", "40,50,24,20", "--output", tmp_path / "out")
    assert "heat has thermal pictures alone" in result.stderr
    assert json.loads((tmp_path / "out" / "heat_tracked.json").read_text())["settings"]["modality"] == "thermal"
    stub.config.streams, stub.config.modality = 2, "thermal"
    assert "alone: give the RGB stream as SOURCE" in error_of("track", tmp_path / "heat", "--box", "40,50,24,20")


def test_options_of_cameras_that_cannot_be_used(stub, tmp_path):
    stub.config.streams, stub.config.modality = 2, "thermal"
    write_pair(tmp_path)
    (tmp_path / "flat.txt").write_text("1 0 0\n2 0 0\n0 0 1\n")
    place = ("track", tmp_path / "rgb", "--thermal", tmp_path / "heat", "--box", "40,50,24,20")
    cases = [
        (("--align", tmp_path / "flat.txt"), r"flat\.txt: the alignment .*is singular"),
        (("--align", tmp_path / "none.txt"), "cannot be read"),
        (("--thermal-range", "5", "5"), "the thermal range is .*lower one first"),
        (("--thermal-range", "5", "6", "--thermal-per-frame"), "choose one"),
        (("--pair-by", "name"), "number, time, rank, not by 'name'"),
        (("--fps", "0"), "positive"),
        (("--event-start", "5"), "of a recording of events, and none is given"),
    ]
    for options, message in cases:
        assert re.search(message, error_of(*place, *options))
    alone = ("track", tmp_path / "rgb", "--box", "40,50,24,20", "--thermal-range", "5", "6")
    assert "a thermal range was given, but" in error_of(*alone)
    assert "no second stream" in error_of("track", tmp_path / "rgb", "--box", "1,1,9,9", "--align", "scale")
