"""Which adapter and which stream a session takes, whatever happens to the model beside it."""

import copy
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from peft_rows import ROWS, inputs, maps, tiny_ostrack, with_adapter

from mmtrackers import Tracker, TrackerImageProcessor
from mmtrackers.hub import adapters
from mmtrackers.modeling import packing

AMG = next(row for row in ROWS if row.peft_type == "AMG_LORA")
BOX = [60, 40, 30, 20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and adapters on it for thermal and for depth."""
    folder = tmp_path_factory.mktemp("tracking")
    tiny_ostrack().save_pretrained(folder / "base")
    TrackerImageProcessor(search_size=64, template_size=32).save_pretrained(folder / "base")
    for seed, modality in enumerate(("thermal", "depth"), 2):
        model = with_adapter(AMG, folder / "base", seed=seed)
        model.config.modality = modality
        model.save_pretrained(folder / modality)
    return folder


@pytest.fixture
def tracker(folder: Path) -> Tracker:
    return Tracker.from_pretrained(str(folder / "thermal"))


def frame(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "rgb": random.integers(0, 255, (120, 160, 3), dtype=np.uint8),
        "thermal": random.integers(0, 255, (120, 160), dtype=np.uint8),
        "depth": random.integers(500, 5000, (120, 160), dtype=np.uint16),
    }


def follow(tracker: Tracker, **options: object) -> tuple[str, np.ndarray]:
    session = tracker.start(frame(), BOX, **options)
    return session.modality, session.update(frame(1)).box


def test_the_stream_is_that_of_the_active_adapter(folder: Path, tracker: Tracker) -> None:
    tracker.add_adapter(str(folder / "depth"), "depth")
    alone = {name: follow(Tracker.from_pretrained(str(folder / name))) for name in ("thermal", "depth")}
    assert alone["thermal"][0] == "thermal" and alone["depth"][0] == "depth"
    for options, name in (({}, "thermal"), ({"adapter": "depth"}, "depth")):
        modality, box = follow(tracker, **options)
        assert modality == name and np.array_equal(box, alone[name][1])
    tracker.model.set_adapter("depth")
    modality, box = follow(tracker)
    assert modality == "depth" and np.array_equal(box, alone["depth"][1])
    assert follow(tracker, adapter="default")[0] == "thermal"
    assert follow(tracker, modality="thermal")[0] == "thermal"


def test_an_adapter_loaded_on_the_model_brings_its_stream(folder: Path, tracker: Tracker) -> None:
    tracker.model.load_adapter(folder / "depth", "depth")
    tracker.model.set_adapter("depth")
    assert follow(tracker)[0] == "depth"


def test_disabled_adapters_stay_off(folder: Path, tracker: Tracker) -> None:
    with_it = follow(tracker)[1]
    tracker.model.disable_adapters()
    session = tracker.start(frame(), BOX)
    plain = Tracker(AMG.tracker.from_pretrained(folder / "base", config=AMG.tracker_config()),
                    tracker.image_processor, modality="thermal")  # fmt: skip
    assert np.array_equal(session.update(frame(1)).box, follow(plain)[1])
    assert not np.array_equal(with_it, follow(plain)[1])
    tracker.model.enable_adapters()
    assert np.array_equal(follow(tracker)[1], with_it)
    assert session.model is not tracker.start(frame(), BOX).model


def test_an_added_adapter_leaves_training_alone(folder: Path, tracker: Tracker) -> None:
    model = tracker.model
    model.set_adapter("default")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("amg_lora" in name)
    model.train()
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tracker.add_adapter(str(folder / "depth"), "depth")
    assert model.training and trains == {name for name, p in model.named_parameters() if p.requires_grad}


def test_sessions_begin_beside_an_adapter_that_is_being_loaded(folder: Path, tracker: Tracker, monkeypatch) -> None:
    """A session takes model and stream at one moment: while an adapter is put on, it waits."""
    inside, go_on, begun = threading.Event(), threading.Event(), threading.Event()
    real = adapters.fill_adapter

    def slowly(*args: object) -> None:
        inside.set()
        assert go_on.wait(30)
        real(*args)

    monkeypatch.setattr(adapters, "fill_adapter", slowly)
    expected, found = follow(tracker), []

    def begin() -> None:
        found.append(follow(tracker))
        begun.set()

    loading = threading.Thread(target=tracker.add_adapter, args=(str(folder / "depth"), "depth"))
    loading.start()
    assert inside.wait(30)
    session = threading.Thread(target=begin)
    session.start()
    assert not begun.wait(0.3)
    go_on.set()
    loading.join()
    session.join()
    assert found[0][0] == expected[0] == "thermal" and np.array_equal(found[0][1], expected[1])


@pytest.mark.filterwarnings("error")
def test_adding_an_adapter_says_nothing(folder: Path, tracker: Tracker) -> None:
    tracker.add_adapter(str(folder / "depth"), "depth")


def test_device_and_type_are_the_models_of_the_moment(tracker: Tracker) -> None:
    session = tracker.start(frame(), BOX)
    tracker.model.to(torch.bfloat16)
    assert tracker.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"the model is torch\.bfloat16 on cpu now; .* Start a new session"):
        session.update(frame(1))
    low = follow(tracker)[1]
    tracker.model.to(torch.float32)
    assert np.abs(follow(tracker)[1] - low).max() < 2


def test_trackers_are_pickled_and_copied_until_they_are_packed(tracker: Tracker) -> None:
    expected = follow(tracker)[1]
    for other in (pickle.loads(pickle.dumps(tracker)), copy.deepcopy(tracker)):
        assert np.array_equal(follow(other)[1], expected)
    tracker.model.pack()
    for act in (pickle.dumps, copy.deepcopy):
        with pytest.raises(RuntimeError, match=r"copying or pickling on a packed model: .* pack\(\) comes last"):
            act(tracker)
    with pytest.raises(RuntimeError, match=r"another device .* on a packed model: .* pack\(\) comes last"):
        tracker.model.to(torch.bfloat16)
    assert tracker.model.to("cpu") is tracker.model
    assert np.abs(follow(tracker)[1] - expected).max() < 0.01


@pytest.mark.parametrize("wrapped", [False, True], ids=["model.compile", "torch.compile"])
def test_sessions_after_compiling(folder: Path, tracker: Tracker, wrapped: bool) -> None:
    """The second one finds the first one's graphs and boxes, and each adapter tracks by itself."""
    tracker.add_adapter(str(folder / "depth"), "depth")
    rgb = Tracker.from_pretrained(str(folder / "base"))
    runs = ((tracker, {"adapter": "default"}), (tracker, {"adapter": "depth"}), (rgb, {}))

    def sessions() -> np.ndarray:
        found = [of.start(frame(), BOX, **options).update(frame(1)) for of, options in runs]
        return np.array([[*prediction.box, prediction.score] for prediction in found])

    plain = sessions()
    assert np.abs(plain[0] - plain[1]).max() > 0.01
    torch._dynamo.reset()
    for of in (tracker, rgb):
        if wrapped:
            of.model = torch.compile(of.model, backend="eager")
        else:
            of.model.compile(backend="eager")
    first = sessions()
    assert np.abs(first - plain).max() < 1e-3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert np.array_equal(sessions(), first)
    torch._dynamo.reset()
    if not wrapped:
        pickle.dumps(rgb)


def test_packing_is_whole_or_not_at_all(tracker: Tracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tracker.model.train()
    model.load_state_dict(model.state_dict())
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    feed, shape, names = inputs(model), str(model), list(model.state_dict())
    expected, count = maps(model, feed), 0
    real = packing.PackedLinear.__init__

    def fails_later(self: packing.PackedLinear, *args: object, **kwargs: object) -> None:
        nonlocal count
        count += 1
        if count > 9:
            raise MemoryError("full")
        real(self, *args, **kwargs)

    monkeypatch.setattr(packing.PackedLinear, "__init__", fails_later)
    with pytest.raises(MemoryError):
        model.pack()
    assert not model.is_packed and str(model) == shape and list(model.state_dict()) == names
    assert trains == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert torch.equal(maps(model, feed), expected)
    monkeypatch.undo()
    model.pack()
    assert model.is_packed and (maps(model, feed) - expected).abs().max() < 1e-4


def test_torch_still_lays_weights_out() -> None:
    """Internal operators of torch, touched in `packing.py` only."""
    linear, convolution = ("_reorder_linear_weight", "_linear_pointwise"), ("_reorder_convolution_weight",)
    for name in (*linear, *convolution, "_convolution_pointwise"):
        assert hasattr(torch.ops.mkldnn, name), name
    if torch.backends.mkldnn.is_available():
        assert packing.PackedLinear(torch.ones(4, 8), None).prepacked is not None


def test_without_those_operators_one_warning_and_the_same_numbers(tracker: Tracker, monkeypatch) -> None:
    def gone(*args: object) -> None:
        raise RuntimeError("no such operator")

    feed = inputs(tracker.model)
    expected = maps(tracker.model, feed)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", gone)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    packing.warn_of_plain_maps.cache_clear()
    with pytest.warns(UserWarning, match=r"does not lay weights out .*no such operator.*same numbers") as caught:
        tracker.model.pack()
    assert len(caught) == 1
    assert (maps(tracker.model, feed) - expected).abs().max() < 1e-4
