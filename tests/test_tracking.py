"""Tracker and session: state, several targets, resets, absence, memory, messages."""

import itertools
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft_rows import ROWS, tiny_ostrack, with_adapter
from safetensors.torch import load_file, save_file
from tracking_stub import RedPatchModel, frame, moving, processor

from mmtrackers import Prediction, Tracker, TrackerImageProcessor, update_together
from mmtrackers.pretrained import SAMPLE_CLIP, default_checkpoint
from mmtrackers.processing.boxes import iou_xywh
from mmtrackers.tracking.memory import SpreadTemplates, TemplatePolicy
from mmtrackers.tracking.sources import open_source
from mmtrackers.tracking.tracker import as_dtype


def make(absent_below: float | None = None, allow_missing: bool = False, **model) -> Tracker:
    return Tracker(RedPatchModel(**model), processor(), absent_below=absent_below, allow_missing=allow_missing)


def test_a_session_follows_the_target_and_embeds_the_template_once():
    tracker = make()
    frames, boxes = moving(12)
    session = tracker.start(frames[0], boxes[0])
    found = [session.update(f) for f in frames[1:]]
    assert iou_xywh(np.array([p.box for p in found]), boxes[1:]).min() > 0.85
    assert all(p.score == pytest.approx(0.8) and p.present for p in found)
    assert found[0].box.dtype == np.float64 and isinstance(found[0].score, float)
    assert tracker.model.embeddings == 1 and session.frame_index == 11
    assert tuple(tracker.model.template.shape) == (1, 1, 1, 3, 32, 32)


def test_several_targets_share_one_forward_pass_and_equal_single_ones():
    a, b = (20, 30, 20, 16), (110, 80, 26, 20)
    later = frame((22, 31, 20, 16), (108, 78, 26, 20))
    tracker = make()
    session = tracker.start(frame(a, b), [a, b])
    both = session.update(later)
    assert tracker.model.batches == [(2, 1, 3, 64, 64)]
    for k, box in enumerate((a, b)):
        alone = make().start(frame(a, b), box).update(later)
        np.testing.assert_array_equal(both[k].box, alone.box)
    assert isinstance(make().start(frame(a), [a]).update(frame(a)), list)


def test_the_carried_state_goes_in_and_comes_out():
    tracker = make()
    frames, boxes = moving(4)
    session = tracker.start(frames[0], boxes[0])
    for f in frames[1:]:
        session.update(f)
    assert tracker.model.states == [None, 1, 2]
    session.reset(frames[0], boxes[0])
    session.update(frames[1])
    assert tracker.model.states[-1] is None


def test_sessions_of_one_tracker_are_independent():
    tracker = make()
    frames, boxes = moving(6)
    other = tracker.start(frame((90, 20, 20, 20)), (90, 20, 20, 20))
    session = tracker.start(frames[0], boxes[0])
    for f in frames[1:]:
        session.update(f)
        other.update(frame((90, 20, 20, 20)))
    np.testing.assert_allclose(other.boxes_xywh[0], (90, 20, 20, 20), atol=1.5)
    assert iou_xywh(session.boxes_xywh[0], boxes[-1]) > 0.85


def test_reset_begins_anew_with_another_size_and_number_of_targets():
    tracker = make()
    session = tracker.start(frame((20, 30, 20, 16)), (20, 30, 20, 16))
    session.update(frame((21, 30, 20, 16)))
    big = frame((100, 90, 30, 30), (10, 10, 20, 20), size=(200, 240))
    session.reset(big, [(100, 90, 30, 30), (10, 10, 20, 20)])
    assert session.frame_index == 0 and tracker.model.embeddings == 2
    found = session.update(big)
    np.testing.assert_allclose([p.box for p in found], [(100, 90, 30, 30), (10, 10, 20, 20)], atol=2)


def test_a_failed_reset_leaves_the_session_as_it_was():
    session = make().start(frame((20, 30, 20, 16)), (20, 30, 20, 16))
    with pytest.raises(ValueError, match="outside"):
        session.reset(frame(size=(60, 60)), (100, 100, 5, 5))
    assert session.update(frame((21, 30, 20, 16))).present


def test_scores_below_the_threshold_report_absence_and_keep_the_box():
    tracker = make(absent_below=0.5)
    session = tracker.start(frame((20, 30, 20, 16)), (20, 30, 20, 16))
    tracker.model.score = 0.3
    lost = session.update(frame((40, 40, 20, 16)))
    assert not lost.present and lost.score == pytest.approx(0.3)
    np.testing.assert_array_equal(lost.box, (20, 30, 20, 16))
    np.testing.assert_array_equal(session.boxes_xywh, [(20, 30, 20, 16)])
    tracker.model.score = 0.9
    found = session.update(frame((22, 32, 20, 16)))
    assert found.present and iou_xywh(found.box, np.array([22.0, 32, 20, 16])) > 0.8


def test_boxes_are_clipped_with_a_margin_of_ten_pixels():
    session = make().start(frame(), (0, 0, 6, 6))
    box = session.update(frame()).box
    np.testing.assert_array_equal(box, (0, 0, 10, 10))


def test_the_box_may_be_set_from_outside():
    session = make().start(frame((20, 30, 20, 16)), (20, 30, 20, 16))
    session.boxes_xywh = [(100, 60, 20, 20)]
    found = session.update(frame((102, 62, 20, 20)))
    assert iou_xywh(found.box, np.array([102.0, 62, 20, 20])) > 0.8
    session.boxes_xywh[:] = 0
    assert session.boxes_xywh[0, 0] > 90, "a copy"
    with pytest.raises(ValueError, match=r"2 boxes for 1 target"):
        session.boxes_xywh = [(1, 2, 3, 4), (5, 6, 7, 8)]


def test_track_yields_one_prediction_per_frame_the_given_box_first():
    frames, boxes = moving(5)
    found = list(make().track(iter(frames), boxes[0]))
    assert len(found) == 5 and found[0].score == 1.0
    np.testing.assert_array_equal(found[0].box, boxes[0])
    assert isinstance(found[0], Prediction)
    with pytest.raises(ValueError, match="no frame to track in"):
        list(make().track([], boxes[0]))


def test_one_copy_from_the_device_per_frame(monkeypatch):
    frames, boxes = moving(3)
    tracker = make()
    session = tracker.start(frames[0], [boxes[0], boxes[0] + 3])
    answer = (torch.full((2, 4), 0.5), torch.full((2,), 0.9))
    monkeypatch.setattr(tracker.model, "decode", lambda output, window: answer)
    copies = []
    for name in ("cpu", "item", "tolist", "__float__", "__bool__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, _original=original, _name=name):
            copies.append(_name)
            return _original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    session.update(frames[1])
    assert copies == ["cpu"]


def test_weights_in_bfloat16_get_bfloat16_inputs():
    tracker = make()
    tracker.model.dtype = torch.bfloat16
    frames, boxes = moving(2)
    session = tracker.start(frames[0], boxes[0])
    assert iou_xywh(session.update(frames[1]).box, boxes[1]) > 0.8
    assert tracker.model.search.dtype == tracker.model.template.dtype == torch.bfloat16


def test_ten_thousand_frames_leave_no_memory_behind():
    tracker = make()
    image = frame((60, 50, 24, 20), size=(100, 140))
    session = tracker.start(image, (60, 50, 24, 20))
    tracker.model.batches = tracker.model.states = Forgetful()
    kept = len(vars(session))
    for _ in range(50):
        session.update(image)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(9_950):
            session.update(image)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert session.frame_index == 10_000
    assert grown < 100_000 and len(vars(session)) == kept


class Forgetful(list):
    """A list that keeps nothing, so that the stub itself does not grow."""

    def append(self, item: object) -> None:
        pass


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([], "four numbers"),
        ([1, 2, 3], "four numbers"),
        ("box", "four numbers"),
        ([[1, 2, 3, 4], [1, 2, 3]], "four numbers"),
        ([10, 10, float("nan"), 5], "not finite"),
        ([10, 10, -5, 5], "no area"),
        ([10, 10, 0, 5], "no area"),
        ([500, 10, 20, 20], r"outside the picture of 160 x 120"),
        ([[10, 10, 20, 20], [10, 10, 20, -1]], "no area"),
    ],
)
def test_boxes_that_cannot_be_used(box, message):
    with pytest.raises(ValueError, match=message):
        make().start(frame(), box)


@pytest.mark.filterwarnings("ignore:the box .* is less than two pixels")
@pytest.mark.parametrize("style", ["ostrack", "lorat"])
@pytest.mark.parametrize("given", [(100, 2), (2, 100), (2, 120), (160, 2), (50, 1), (1, 50), (2, 2), (160, 120),
                                   (320, 2), (0.5, 120)], ids=str)  # fmt: skip
def test_extreme_aspect_ratios(style, given):
    """Drawn and predicted ones, in the middle, in the corners and half outside: boxes stay on the frame."""
    images = TrackerImageProcessor(template_size=32, search_size=64, crop_style=style)
    tracker = Tracker(RedPatchModel(streams=2, modality="thermal"), images)
    predicted = [(1, 1e-4), (1e-4, 1), (1, 1), (1e-6, 1e-6), (0, 0), (1, 0.02), (0.02, 1), (5, 0.1)]
    size, video = np.array(given), [frame(modality="thermal") for _ in range(3)]
    aligned = {"thermal": np.array([[1.02, 0.01, -3], [0.0, 0.98, 2], [0, 0, 1]])}
    corners = (((160, 120) - size) / 2, (160, 120) - size, -size / 2)
    for number, (corner, sides) in enumerate(itertools.product(corners, predicted)):
        answer = torch.tensor([[0.5, 0.5, *sides]]), torch.tensor([0.8])
        tracker.model.decode = lambda *_, answer=answer: answer
        session = tracker.start(video[0], (*corner, *given), alignment=aligned if number % 2 else None)
        for picture in video[1:]:
            box = session.update(picture).box
            assert np.isfinite(box).all() and (box[2:] > 0).all() and tracker.model.search.isfinite().all()
            assert (box[:2] < (160, 120)).all() and (box[:2] + box[2:] > 0).all()


def test_frames_of_changing_size():
    session = make().start(frame((20, 30, 20, 16)), (20, 30, 20, 16))
    session.update(frame((20, 30, 20, 16)))
    with pytest.raises(ValueError, match=r"frame 2 is 80x60 .*started on 160x120.*reset\(frame, box\)"):
        session.update(frame(size=(60, 80)))


def test_streams_missing_and_replaced():
    boxes = (20, 30, 20, 16)
    with pytest.raises(ValueError, match=r"no thermal stream .*allow_missing"):
        make(streams=2, modality="thermal").start(frame(boxes), boxes)
    session = make(streams=2, modality="thermal").start(frame(boxes, modality="thermal"), boxes)
    with pytest.raises(ValueError, match="no thermal stream"):
        session.update(frame(boxes))
    tracker = make(streams=2, modality="thermal", allow_missing=True)
    with pytest.warns(UserWarning, match="rgb picture is fed in its place"):
        session = tracker.start(frame(boxes), boxes)
    session.update(frame(boxes))
    assert torch.equal(tracker.model.search[:, 0], tracker.model.search[:, 1])


@pytest.mark.parametrize("modality", ["thermal", "depth", "event"])
def test_one_tracker_for_every_second_stream(modality: str):
    boxes = (20, 30, 20, 16)
    given, rgb = frame(boxes, modality=modality), frame(boxes)
    stream = make(streams=2, modality=modality).start(given, boxes)
    tracker = make(streams=2, modality="any")
    for session in (tracker.start(given, boxes), tracker.start(given, boxes, modality=modality)):
        assert session.modality == modality
        for one in (stream, session):
            one.update(given)
        assert torch.equal(stream.tracker.model.search, tracker.model.search)
        with pytest.raises(ValueError, match=f"no {modality} stream"):
            session.update(rgb)
    both = {"event" if modality == "thermal" else "thermal": rgb["rgb"]} | given
    with pytest.raises(ValueError, match="say which to read, with modality="):
        tracker.start(both, boxes)
    assert next(tracker.track([both], boxes, modality=modality)).score == 1
    fixed = make(streams=2, modality="thermal" if modality != "thermal" else "depth")
    assert fixed.start(given, boxes, modality=modality).modality == modality


def state_of(session):
    """What a session stands for: boxes, count, carried state, kept crops."""
    kept = {i: session._memory[i][0].tolist() for i in session._memory}
    return session.boxes_xywh.tolist(), session.frame_index, session._state.tolist(), kept


class Stateful(RedPatchModel):
    """A stub that carries a tensor from frame to frame."""

    def __call__(self, search, template, state=None):
        output = super().__call__(search, template, state)
        output.state = search.new_full((self.config.streams * len(search), 1, 4), len(self.states))
        return output


@pytest.mark.parametrize("policy", [TemplatePolicy(), SpreadTemplates(templates=2)], ids=["one", "spread"])
@pytest.mark.parametrize("fault", ["nan", "size", "stream"])
def test_a_refused_update_leaves_all_sessions_as_they_were(policy, fault):
    box = (20, 30, 20, 16)
    tracker = Tracker(Stateful(streams=2, modality="thermal"), processor())
    tracker.model.template_policy = policy
    frames = [frame((22, 31, 20, 16), size=size, modality="thermal") for size in ((120, 160), (200, 240))]
    sessions = [tracker.start(frames[0], box), tracker.start(frames[1], [box, box])]
    for session, one in zip(sessions, frames, strict=True):
        session.update(one)
    before = [state_of(session) for session in sessions]
    bad = list(frames)
    if fault == "nan":
        tracker.model.score = float("nan")
    else:
        bad[1] = {"rgb": frames[1]["rgb"]} if fault == "stream" else frames[0]
    with pytest.raises(ValueError, match=r"frame 2|no thermal stream"):
        update_together(sessions, bad)
    assert [state_of(session) for session in sessions] == before
    tracker.model.score = 0.8
    (one, (two, _)) = update_together(sessions, frames)
    assert one.score == two.score == pytest.approx(0.8) and [s.frame_index for s in sessions] == [2, 2]
    with pytest.raises(ValueError, match="a session is there twice"):
        update_together([sessions[0]] * 2, [frames[0]] * 2)


def test_predictions_and_crops_compare_by_identity():
    one, other = Prediction(np.ones(4), 0.5), Prediction(np.ones(4), 0.5)
    assert one != other and one in [other, one] and len({one, other, one}) == 2
    crops = [processor().locate((10, 10, 20, 20), "search") for _ in range(2)]
    assert crops[0] != crops[1] and crops[1] in crops and len(set(crops)) == 2


def test_what_a_tracker_refuses():
    with pytest.raises(ValueError, match="absent_below is a score from 0 to 1, not 3"):
        make(absent_below=3)
    tracker = make()
    tracker.model.training = True
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        tracker.start(frame(), (1, 2, 30, 40))
    tracker = make()
    session = tracker.start(frame(), (1, 2, 30, 40))
    tracker.model.training = True
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        session.update(frame())
    tracker.model.training = False
    with pytest.raises(ValueError, match="max_frames is -1, expected 1 or more"):
        tracker.track([frame()], (1, 2, 30, 40), max_frames=-1)
    tracker.model.score = float("nan")
    with pytest.raises(ValueError, match=r"frame 1: its weights or its precision are broken"):
        session.update(frame())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bf16", torch.bfloat16), ("float32", torch.float32), ("half", torch.float16), (None, None)],
)
def test_names_of_types(name, dtype):
    assert as_dtype(name) is dtype


@pytest.mark.parametrize("name", ["int8", "nn", "bfloat", "float8_e4m3fn"])
def test_names_of_no_types(name):
    with pytest.raises(ValueError, match=f"dtype '{name}' is not a floating type"):
        as_dtype(name)


@pytest.fixture(scope="module")
def walk():
    """The first frames of the sample, and what the embedded tracker finds in them."""
    video = [picture["rgb"] for picture in itertools.islice(open_source(SAMPLE_CLIP), 8)]
    return video, followed(Tracker.from_pretrained(default_checkpoint()), video)


def followed(tracker, video):
    return np.array([prediction.box for prediction in tracker.track(video, [353, 396, 53, 148])])


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto", None], ids=str)
def test_the_same_boxes_each_time_and_with_a_device_map(walk, device_map):
    video, known = walk
    assert np.array_equal(followed(Tracker.from_pretrained(default_checkpoint(), device_map=device_map), video), known)


@pytest.mark.slow
def test_half_precision_on_the_cpu_is_within_two_pixels(walk):
    video, _ = walk
    plain, half = (Tracker.from_pretrained(default_checkpoint(), **{name: dtype})
                   for name, dtype in (("dtype", "float32"), ("torch_dtype", "float16")))  # fmt: skip
    assert (plain.dtype, half.dtype) == (torch.float32, torch.float16)
    plain, half = (tracker.start(video[0], [353, 396, 53, 148]) for tracker in (plain, half))
    for picture in video[1:]:
        half.boxes_xywh = plain.boxes_xywh
        assert np.abs(plain.update(picture).box - half.update(picture).box).max() < 2


def test_a_peft_model_tracks_as_its_folder_does(saved):
    video = [frame((22 + i, 31, 20, 16), modality="thermal") for i in range(4)]
    folder = Tracker.from_pretrained(saved / "adapter")
    base = type(folder.model).from_pretrained(saved / "base", config=folder.model.config)
    wrapped = Tracker(PeftModel.from_pretrained(base, saved / "adapter").eval(), folder.image_processor)
    one, other = (list(tracker.track(video, (20, 30, 20, 16))) for tracker in (folder, wrapped))
    assert all(np.array_equal(a.box, b.box) and a.score == b.score for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A base with a processor of its own, and an adapter folder that has another one."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_ostrack().save_pretrained(folder / "base")
    TrackerImageProcessor(template_size=32, search_size=64, search_factor=2.5).save_pretrained(folder / "base")
    with_adapter(next(row for row in ROWS if row.peft_type == "AMG_LORA"), folder / "base").save_pretrained(
        folder / "adapter"
    )
    TrackerImageProcessor(template_size=32, search_size=64, search_factor=4.5).save_pretrained(folder / "adapter")
    return folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "adapter: preprocessor_config.json is not valid JSON"),
        ('{"search_factor": 4.', "adapter: preprocessor_config.json is not valid JSON"),
        ("[1]", "adapter: preprocessor_config.json holds a list"),
        (None, "adapter: preprocessor_config.json cannot be read"),
        ('{"search_factor": "wide"}', "adapter: preprocessor_config.json cannot be used: search_factor is 'wide'"),
    ],
)
def test_a_damaged_processor_file_is_not_replaced_by_the_bases(saved, tmp_path, content, message):
    shutil.copytree(saved, tmp_path / "copy")
    adapter = tmp_path / "copy" / "adapter"
    assert Tracker.from_pretrained(str(adapter)).image_processor.search_factor == 4.5
    path = adapter / "preprocessor_config.json"
    path.unlink()
    assert Tracker.from_pretrained(str(adapter)).image_processor.search_factor == 2.5, "absent: the base's"
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    with pytest.raises((OSError, ValueError), match=message):
        Tracker.from_pretrained(str(adapter))


@pytest.mark.parametrize("which", ["base", "adapter"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(saved, tmp_path, which, dtype):
    shutil.copytree(saved, tmp_path / "copy")
    path = next((tmp_path / "copy" / which).glob("*.safetensors"))
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim == 2)
    save_file(tensors | {name: tensors[name].to(dtype)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"{which}.*(quantized weights|1 quantized).*{name}"):
        Tracker.from_pretrained(str(tmp_path / "copy" / which))
