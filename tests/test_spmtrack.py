"""SPMTrack beyond its numbers: sizes, adapter on a DINOv2, state, clips, packing, long videos, what goes wrong."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_rows import scramble
from peft import LoraConfig
from safetensors.torch import load_file
from test_lorat import save_dinov2, tiny_dinov2
from torch import Tensor

from mmtrackers import AutoTracker, SPMTrackConfig, SPMTrackForTracking, TMoEConfig, Tracker, TrackerImageProcessor
from mmtrackers.tracking.memory import QuarterReferences, ThirdReferences
from mmtrackers.training.optimization import parameter_groups
from mmtrackers.training.recipes import RECIPES
from mmtrackers.tuners.tmoe.config import tmoe_config

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "search_size": 56, "template_size": 28}
# WenRuiCai/SPMTrack's README gives 115.3, 379.6 and 1339.5 million, of which 29.2, 75.9 and 204.0 are trained
COUNTS = {
    "small": (35_841_797, 14_032_133, 13_436_928),
    "base": (115_330_565, 29_243_909, 26_873_856),
    "large": (379_582_469, 75_872_261, 71_663_616),
    "giant": (1_339_511_813, 204_018_693, 194_560_000),
}


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts(size: str) -> None:
    with torch.device("meta"):
        model = SPMTrackForTracking(SPMTrackConfig.published(size)).requires_grad_(False)
        base = sum(p.numel() for p in model.parameters())
        model.add_adapter(tmoe_config())
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    experts = sum(count for name, count in trained.items() if ".tmoe_" in name)
    assert (base + experts, sum(trained.values()), experts) == COUNTS[size]
    assert model.config.drop_path_rate == {"large": 0.1, "giant": 0.4}.get(size, 0.0)


def tiny(**fields) -> SPMTrackForTracking:
    """A tracker whose numbers are random, as after training."""
    torch.manual_seed(0)
    model = SPMTrackForTracking(SPMTrackConfig(**(TINY | fields))).eval()
    scramble(model, 0.1)
    with torch.no_grad():  # the head reads features times their product with a token: it would be saturated
        model.model.norm.weight.mul_(0.3)
    return model


def adapted(model: SPMTrackForTracking, **changes) -> SPMTrackForTracking:
    model.requires_grad_(False)
    model.add_adapter(tmoe_config(r=4, alpha=4, num_experts=3, **changes))
    scramble(model, 0.05, trainable_only=True)
    return model.eval()


def feed_of(model: SPMTrackForTracking, batch: int = 2, frames: int = 0) -> dict[str, Tensor]:
    config, random = model.config, torch.Generator().manual_seed(1)
    lead, streams = (batch, frames) if frames else (batch,), config.streams
    search = torch.randn(*lead, streams, 3, 56, 56, generator=random)
    template = torch.randn(batch, 3, streams, 3, 28, 28, generator=random)
    mask = (torch.rand(batch, 3, 2, 2, generator=random) > 0.5).long()
    labels = torch.tensor([0.3, 0.35, 0.3, 0.2]).expand(*lead, 4)
    return {"search": search, "template": template, "template_mask": mask} | ({"labels": labels} if frames else {})


@torch.no_grad()
def maps(model: SPMTrackForTracking, feed: dict[str, Tensor]) -> Tensor:
    """What two frames in a row give."""
    first = model(**feed)
    second = model(**feed, state=first.state)
    parts = [output[name].flatten(1) for output in (first, second) for name in ("score_map", "box_map")]
    return torch.cat([*parts, second.state.view(-1, len(feed["search"]), 32).mean(0)], 1)


@torch.no_grad()
def test_a_clip_has_all_maps_of_its_frames() -> None:
    model = tiny()
    feed = feed_of(model, frames=2) | {"labels": None}
    clip, first = model(**feed), model(**feed | {"search": feed["search"][:, 0]})
    for name in ("boxes", "score_map", "score_logits", "box_map"):
        assert clip[name].shape[:2] == (2, 2), name
        torch.testing.assert_close(clip[name][:, 0], first[name], msg=name)


def test_adapter_on_a_plain_dinov2(tmp_path: Path) -> None:
    base = save_dinov2(tiny_dinov2(), tmp_path / "dinov2", "transformers5")
    torch.manual_seed(1)
    model = SPMTrackForTracking.from_base(base, search_size=56, template_size=28)
    assert model.training and type(model.peft_config["default"]) is TMoEConfig
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len([name for name in trained if ".tmoe_" in name]) == 2 * 6 * 2
    others = {name.replace(".modules_to_save.default", "") for name in trained if ".tmoe_" not in name}
    tokens = {"model.embeddings.token_type.weight", "model.track_token.start", "model.track_token.position"}
    layers = {f"head.{part}.{i}.{leaf}" for part in ("score", "box") for i in (0, 2, 4) for leaf in ("weight", "bias")}
    assert others == tokens | layers
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded, feed = AutoTracker.from_pretrained(tmp_path / "adapter"), feed_of(model)
    assert type(loaded) is SPMTrackForTracking
    assert torch.equal(maps(loaded, feed), maps(model, feed))
    assert len(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == len(trained)
    processor = TrackerImageProcessor.from_pretrained(tmp_path / "adapter")
    assert (processor.crop_style, processor.search_size, processor.template_size) == ("lorat", 56, 28)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "spmtrack" in card and "TMOE" in card
    with pytest.raises(ValueError, match=r"without .*model\.track_token, and .*modules_to_save"):
        SPMTrackForTracking.from_base(
            base, adapter_config=TMoEConfig(modules_to_save=["head", "token_type"]), search_size=56, template_size=28
        )
    with pytest.raises(ValueError, match="gates are another for every token"):
        loaded.merge_and_unload()


def test_whole_model_round_trip(tmp_path: Path) -> None:
    model = tiny(reference_rule="thirds", max_memory=None)
    model.save_pretrained(tmp_path)
    loaded, feed = AutoTracker.from_pretrained(tmp_path), feed_of(model)
    assert torch.equal(maps(loaded, feed), maps(model, feed))
    assert loaded.template_policy == ThirdReferences(max_memory=None)
    assert tiny().template_policy == QuarterReferences()
    with pytest.raises(Exception, match="reference_rule is 'halves', expected 'quarters' or 'thirds'"):
        SPMTrackConfig(reference_rule="halves")
    with pytest.raises(Exception, match="max_memory is 4, expected at least 16 frames"):
        SPMTrackConfig(max_memory=4)


def test_the_state_is_carried_and_checked() -> None:
    model, feed = tiny(), feed_of(tiny())
    first = model(**feed)
    zero, second = model(**feed, state=torch.zeros(2, 1, 32)), model(**feed, state=first.state)
    assert torch.equal(zero.score_map, first.score_map)
    assert (second.score_map - first.score_map).abs().max() > 1e-4
    assert first.state.shape == (2, 1, 32) and not first.state.requires_grad
    swapped = model(**{n: v.flip(0) for n, v in feed.items()}, state=first.state.flip(0))
    torch.testing.assert_close(swapped.state.flip(0), second.state, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"state has shape \[1, 1, 32\], expected \[2, 1, 32\]"):
        model(**feed, state=first.state[:1])


@pytest.mark.parametrize("fields", [{}, {"use_swiglu_ffn": True}, {"streams": 2, "modality": "depth"}])
@pytest.mark.parametrize("changes", [{}, {"shared_low_rank_expert": True}])
def test_packed_is_plain(fields: dict, changes: dict) -> None:
    model = adapted(tiny(**fields), **changes)
    feed = feed_of(model)
    expected, bare = maps(model, feed), maps(tiny(**fields), feed)
    assert (expected - bare).abs().max() > 1e-3
    model.pack()
    assert (maps(model, feed) - expected).abs().max() <= 1e-5
    embedded = model.embed_template(feed.pop("template"), feed.pop("template_mask"))
    assert (maps(model, feed | {"template": embedded}) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("pack", [False, True])
def test_bfloat16(pack: bool) -> None:
    model = adapted(tiny())
    feed = feed_of(model)
    expected = maps(model, feed)
    model.to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if ".default" in name:  # adapters stay in float32
            parameter.data = parameter.data.float()
    if pack:
        model.pack()
    low = {name: value.bfloat16() if value.is_floating_point() else value for name, value in feed.items()}
    assert (maps(model, low).float() - expected).abs().mean() <= 0.02


def test_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = adapted(tiny()).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**feed_of(model, frames=2)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys() and None not in gradients[0].values()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-7, msg=name)
        assert gradient.abs().sum() > 0, name


def test_compiles_without_graph_break() -> None:
    model = adapted(tiny())
    feed = feed_of(model) | {"state": torch.randn(2, 1, 32)}
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**feed).box_map, model(**feed).box_map, atol=1e-5, rtol=0)


def test_what_decays() -> None:
    """As in the published recipe: matrices, and of the state's two rows the first alone."""
    model = adapted(tiny())
    groups = parameter_groups(model, RECIPES["spmtrack"])
    names = {id(p): name.replace(".modules_to_save.default", "") for name, p in model.named_parameters()}
    decays = {names[id(p)]: bool(group["weight_decay"]) for group in groups for p in group["params"]}
    assert all(decays[name] == (".bias" not in name) for name in decays if name.startswith("head."))
    assert all(decays[name] for name in decays if ".tmoe_" in name)
    tokens = ("track_token.start", "track_token.position", "embeddings.token_type.weight")
    assert [decays[f"model.{name}"] for name in tokens] == [True, False, False]
    assert (RECIPES["spmtrack"].weight_decay, RECIPES["spmtrack"].batch_size) == (0.1, 128)


def test_other_tuners_stand_on_it() -> None:
    model = tiny()
    feed = feed_of(model)
    plain = maps(model, feed)
    model.add_adapter(LoraConfig(target_modules=["q_proj", "fc2"], r=2, init_lora_weights=False))
    assert (maps(model.eval(), feed) - plain).abs().max() > 1e-4


def picture(number: int) -> np.ndarray:
    noise = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return noise.repeat(10, 0).repeat(10, 1)


def test_a_box_that_leaves_the_picture_moves_nothing() -> None:
    """The published code fails where nothing of a box is left on the picture; here the last crop serves again."""
    model = tiny()
    session = Tracker(model, model.image_processor()).start(picture(0), [60, 40, 12, 10])
    session.update(picture(1))
    before, (pixels, mask) = session.boxes_xywh, session._newest
    model.decode = lambda output, window: (torch.tensor([[3.0, 3.0, 0.1, 0.1]]), torch.tensor([0.9]))
    prediction = session.update(picture(2))
    assert np.array_equal(prediction.box, before[0]) and prediction.score == pytest.approx(0.9)
    assert torch.equal(session._newest[0], pixels) and torch.equal(session._newest[1], mask)
    model.decode = lambda output, window: (torch.tensor([[0.5, 0.5, 1e-7, 1e-7]]), torch.tensor([0.9]))
    prediction = session.update(picture(3))
    assert (prediction.box[2:] < 1e-3).all() and (prediction.box[2:] > 0).all()
    assert torch.isfinite(session._newest[0]).all() and session._newest[1].sum() >= 1
    del model.decode
    assert np.isfinite(session.update(picture(4)).box).all()


@pytest.mark.slow
def test_ten_thousand_frames_stay_flat() -> None:
    class Still(SPMTrackForTracking):
        """Answers without a look; only references and state are real."""

        def forward(self, search: Tensor, template: Tensor, state: Tensor | None = None, **kwargs):
            return replace(self.answer, state=template[:, :1] + (0 if state is None else 0.1 * state))

    model = Still(SPMTrackConfig(**TINY, max_memory=32)).eval()
    model.answer = SPMTrackForTracking.forward(model, **feed_of(model, batch=1))
    model.decode = lambda output, window: (torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([0.9]))
    image = picture(0)
    session = Tracker(model, model.image_processor()).start(image, [30, 20, 12, 10])
    sizes = []
    tracemalloc.start()
    try:
        for now in range(1, 10_001):
            session.update(image)
            if now in (2_048, 4_096, 8_192):  # right before the memory's stride doubles, when most is kept
                sizes.append((len(session._memory), tracemalloc.get_traced_memory()[0]))
    finally:
        tracemalloc.stop()
    kept, memory = np.array(sizes).T
    assert kept.max() <= 32 and kept.min() == kept.max()
    assert memory.max() - memory.min() < 100_000
    assert torch.isfinite(session._state).all() and session.frame_index == 10_000
