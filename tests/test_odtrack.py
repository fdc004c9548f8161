"""ODTrack's own: the carried token, clips, templates from memory, and official files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from example_scripts import load
from model_rows import ROWS, TINY, Row, difference, inputs, labels, maps
from official_names import official_ostrack, save_official
from torch import Tensor
from tracking_stub import moving

from mmtrackers import (
    AutoTracker,
    ODTrackConfig,
    ODTrackForTracking,
    OSTrackConfig,
    OSTrackForTracking,
    Tracker,
    TrackerImageProcessor,
)
from mmtrackers.conversion.systems import convert_checkpoint
from mmtrackers.models.odtrack.convert_odtrack import ODTRACK
from mmtrackers.processing.crops import hann_window
from mmtrackers.tracking.memory import SpreadTemplates, TemplatePolicy

TINY_ROWS = [row for row in ROWS if row.model is ODTrackForTracking]


@pytest.fixture(params=TINY_ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def clip(row: Row, frames: int = 3) -> dict[str, Tensor]:
    """A batch of clips with labels."""
    config, random = row.make_config(), torch.Generator().manual_seed(5)
    search = torch.randn(2, frames, config.streams, 3, 64, 64, generator=random)
    moves = torch.arange(frames)[None, :, None] * torch.tensor([0.02, 0.01, 0.0, 0.0])
    return inputs(config) | {"search": search, "labels": labels()[:, None] + moves}


@torch.no_grad()
def test_the_token_is_carried_from_outside_and_kept_nowhere(row: Row) -> None:
    model, feed = row.build(), inputs(row.make_config())
    before = {name: id(value) for name, value in model.named_buffers()}
    first = model(**feed)
    assert first.state.shape == (2 * model.config.streams, 1, 32)
    second = model(**feed, state=first.state)
    assert difference(second.score_map, first.score_map) > 1e-4, "the token matters"
    assert difference(second.state, first.state) > 1e-4
    assert torch.equal(model(**feed).score_map, first.score_map), "a new video begins without it"
    assert {name: id(value) for name, value in model.named_buffers()} == before


def test_templates_change_the_answer_and_may_be_any_number(row: Row) -> None:
    model, feed = row.build(), inputs(row.make_config())
    with torch.no_grad():
        one, two = maps(model, feed | {"template": feed["template"][:, :1]}), maps(model, feed)
        swapped = maps(model, feed | {"template": feed["template"].flip(1)})
    assert difference(one, two) > 1e-4
    assert difference(swapped, two) <= 1e-5, "all templates share one position table"


@pytest.mark.parametrize("shape", [(2, 1, 16), (3, 1, 32), (2, 2, 32)])
def test_a_state_of_another_shape(row: Row, shape: tuple[int, ...]) -> None:
    if row.make_config().streams == 2 and shape[0] == 2:
        shape = (4, *shape[1:])
    with pytest.raises(ValueError, match=r"state has shape .*None at the beginning of a video"):
        row.build()(**inputs(row.make_config()), state=torch.zeros(shape))


def test_loss_of_a_clip_is_the_sum_over_frames_with_a_detached_token(row: Row) -> None:
    model, feed = row.plain().train(), clip(row)
    model.head.eval()
    output = model(**feed)
    grads = {}
    output.loss.backward()
    grads["clip"] = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    state, total, overlaps = None, 0, []
    for index in range(3):
        frame = model(feed["search"][:, index], feed["template"], state=state, labels=feed["labels"][:, index])
        assert not frame.state.requires_grad
        state, total = frame.state, total + frame.loss
        overlaps.append(frame.loss_parts["iou"])
        assert torch.equal(output.boxes[:, index], frame.boxes)
    assert torch.allclose(output.loss, total) and torch.equal(output.state, state)
    assert torch.allclose(output.loss_parts["iou"], torch.stack(overlaps).mean())
    total.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(grads["clip"][name], parameter.grad, rtol=1e-4, atol=1e-6), name
    assert grads["clip"]["model.track_token.start"].abs().max() > 0


def test_labels_of_another_number_of_frames(row: Row) -> None:
    feed = clip(row)
    with pytest.raises(ValueError, match=r"labels have shape \[2, 2, 4\], expected \[2, 3, 4\]"):
        row.plain()(**feed | {"labels": feed["labels"][:, :2]})


def test_policy_and_what_configs_refuse() -> None:
    def policy(**fields) -> TemplatePolicy:
        return ODTrackForTracking(ODTrackConfig(**TINY, **fields)).template_policy

    assert policy() == SpreadTemplates(max_memory=1024, templates=3)
    assert policy(num_templates=5, max_memory=None) == SpreadTemplates(max_memory=None, templates=5)
    assert type(policy(num_templates=1)) is TemplatePolicy
    for fields, message in (({"num_templates": 0}, "at least 1"), ({"max_memory": 23}, "at least 24 frames")):
        with pytest.raises(Exception, match=message):
            ODTrackConfig(**TINY, **fields)


@torch.no_grad()
def published_loop(model, processor, images: list[np.ndarray], box: np.ndarray) -> list[np.ndarray]:
    """ODTrack's test-time loop, written as plainly as it can be: every crop is kept, everything is run anew."""
    from mmtrackers.processing.boxes import clip_box_xywh

    count, window = model.config.num_templates, torch.from_numpy(hann_window(model.config.search_grid))
    memory, found, state = [processor.template([images[0]], [box])], [box], None
    for now, image in enumerate(images[1:], start=1):
        chosen = range(now)
        if now > count:
            part = now // count
            chosen = sorted({0} | {k * part + part // 2 for k in range(count)})
        search, crops = processor.search([image], [found[-1]])
        output = model(search, torch.cat([memory[k] for k in chosen], 1), state=state)
        state = output.state
        box_cxcywh = model.decode(output, window)[0][0].double().numpy()
        found.append(clip_box_xywh(processor.box_from_crop(box_cxcywh, crops[0]), *image.shape[:2]))
        memory.append(processor.template([image], [found[-1]]))
    return found


def test_a_tracker_from_a_folder_follows_the_published_loop(row: Row, tmp_path: Path) -> None:
    """Saved, loaded by `Tracker`, run through 40 frames: the boxes of the loop above, for one target and for two."""
    model, processor = row.build(), TrackerImageProcessor(template_size=32, search_size=64)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    frames, boxes = moving(40)
    if model.config.streams == 2:
        frames = [f | {"depth": (f["rgb"][..., 1].astype(np.uint16) + 300) * 10} for f in frames]
    tracker = Tracker.from_pretrained(tmp_path)
    assert type(tracker.model) is ODTrackForTracking
    targets = [boxes[0], np.array([20.0, 20.0, 30.0, 24.0])]
    images = [tracker.image_processor.stack(frame, tracker.modality, tracker.streams) for frame in frames]
    expected = [published_loop(model, processor, images, box) for box in targets]
    single = [prediction.box for prediction in tracker.track(frames, targets[0])]
    np.testing.assert_allclose(single, expected[0], atol=1e-2)
    both = [[p.box for p in predictions] for predictions in tracker.track(frames, targets)]
    np.testing.assert_allclose(both, np.stack(expected, 1), atol=1e-2)
    assert np.ptp(np.array(single), axis=0).max() > 1, "the boxes move"


def test_parity_of_a_converted_file(tmp_path: Path) -> None:
    """A file in the official form becomes a folder that loads and equals it; what is not ODTrack is named."""
    config = ODTrackConfig(**TINY | {"hidden_size": 64, "num_attention_heads": 1})
    torch.manual_seed(0)
    model = ODTrackForTracking(config).eval()
    net = official_ostrack(model.state_dict())
    assert {"backbone.cls_token", "backbone.cls_pos_embed", "backbone.pos_embed"} <= set(net)
    file = save_official(tmp_path / "ODTrack_ep0300.pth.tar", net)
    report = convert_checkpoint("odtrack", file, tmp_path / "out")
    assert report.differences == {"numbers": 0.0, "forward": 0.0}
    assert "1 unused entries left out" in str(report) and "odtrack (search 64" in str(report)
    loaded = AutoTracker.from_pretrained(tmp_path / "out")
    assert type(loaded) is ODTrackForTracking and loaded.config.num_templates == 3
    feed = inputs(config)
    assert torch.equal(maps(loaded, feed), maps(model, feed))
    assert "ODTrack" in (tmp_path / "out" / "README.md").read_text()
    ostrack = OSTrackForTracking(OSTrackConfig(**TINY | {"hidden_size": 64, "num_attention_heads": 1}))
    plain = save_official(tmp_path / "a.pth", official_ostrack(ostrack.state_dict()))
    with pytest.raises(ValueError, match=r"1 missing: model\.track_token\.position"):
        convert_checkpoint("odtrack", plain, tmp_path / "b")
    with pytest.raises(ValueError, match=r"unexpected entry 'backbone\.cls_pos_embed'"):
        convert_checkpoint("ostrack", file, tmp_path / "b")


def test_sizes_of_published_files() -> None:
    """12 and 24 layers drop tokens in layers 3, 6 and 9, as their experiment files say; other depths nowhere."""
    from mmtrackers.models.ostrack.convert_ostrack import ostrack_config, variant

    for depth, width, layers in ((12, 768, [3, 6, 9]), (24, 1024, [3, 6, 9]), (2, 64, [])):
        with torch.device("meta"):
            config = ODTrackConfig(
                hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 64, elimination_layers=layers
            )
            net = ODTrackForTracking(config).state_dict()
        found = ostrack_config(net, ODTRACK)
        assert found.to_dict() == config.to_dict() and variant(found) == "384" and found.search_factor == 5.0


def test_an_odtrack_starts_from_a_trained_ostrack(tmp_path: Path) -> None:
    """What the head reads is what the OSTrack's reads, times one factor that is taken out again."""
    base = ROWS[1].plain()
    with torch.no_grad():
        base.model.norm.bias.add_(2.0)  # trained norms have one, and with it a product with the token that is positive
    base.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_text("{}")
    load("new_tiny").main(tmp_path / "out", odtrack_from_=tmp_path / "base")
    model = AutoTracker.from_pretrained(tmp_path / "out")
    assert type(model) is ODTrackForTracking
    own, given = model.state_dict(), base.state_dict()
    assert set(own) - set(given) == {"model.track_token.start", "model.track_token.position"}
    first = {f"head.{branch}.0.conv.weight" for branch in ("score", "size", "offset")}
    assert all(torch.equal(own[name], tensor) for name, tensor in given.items() if name not in first)
    factors = torch.cat([(given[name] / own[name]).flatten() for name in first])
    assert factors.min() > 1 and factors.max() - factors.min() < 1e-3 * factors.max()
    assert load("new_tiny").level_head(model) == pytest.approx(factors.mean().item(), rel=1e-4), "features times token"
    assert model.config.fusion == "mean" and model.config.stem == "conv" and model.config.num_templates == 3
    with pytest.raises(ValueError, match="is a ODTrackForTracking, expected an OSTrackForTracking"):
        load("new_tiny").odtrack_from(tmp_path / "out")


def test_an_ostrack_goes_on_at_larger_crops(tmp_path: Path) -> None:
    """All weights stay but for the positions, which are the same surface on a finer grid."""
    base = ROWS[1].plain()
    base.save_pretrained(tmp_path / "base")
    TrackerImageProcessor(search_factor=4.5).save_pretrained(tmp_path / "base")
    size = 2 * base.config.search_size
    load("new_tiny").main(tmp_path / "out", larger_from_=tmp_path / "base", search_size=size)
    model = AutoTracker.from_pretrained(tmp_path / "out")
    processor = TrackerImageProcessor.from_pretrained(tmp_path / "out")
    assert (model.config.search_size, model.config.template_size) == (size, size // 2)
    assert (processor.search_size, processor.template_size, processor.search_factor) == (size, size // 2, 4.5)
    own, given = model.state_dict(), base.state_dict()
    changed = {name for name, tensor in given.items() if not torch.equal(own[name], tensor)}
    assert changed == {"model.embeddings.search_position", "model.embeddings.template_position"}
    for name in changed:
        assert own[name].mean(1) == pytest.approx(given[name].mean(1), abs=0.1 * given[name].std().item())
