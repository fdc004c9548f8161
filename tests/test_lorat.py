"""LoRAT beyond its numbers: sizes, adapter, start from DINOv2, merging, tracking, two streams."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from model_rows import scramble
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from mmtrackers import AMGLoraConfig, AutoTracker, LoRATConfig, LoRATForTracking, Tracker, TrackerImageProcessor
from mmtrackers.tuners.lora import lora_config

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "search_size": 56, "template_size": 28}
# totals with the adapter merged, LoRA, head, token types (LiTingLin/LoRAT's own modules, counted)
COUNTS = {
    ("small", 224): (22_222_469, 5_308_416, 593_285, 1_152),
    ("small", 378): (22_404_101, 5_308_416, 593_285, 1_152),
    ("base", 224): (88_091_909, 10_616_832, 2_366_213, 2_304),
    ("base", 378): (88_455_173, 10_616_832, 2_366_213, 2_304),
    ("large", 224): (307_432_453, 28_311_552, 4_203_525, 3_072),
    ("large", 378): (307_916_805, 28_311_552, 4_203_525, 3_072),
    ("giant", 224): (1_144_222_213, 70_778_880, 9_451_013, 4_608),
    ("giant", 378): (1_144_948_741, 70_778_880, 9_451_013, 4_608),
}


@pytest.mark.parametrize(("size", "search"), COUNTS)
def test_parameter_counts(size: str, search: int) -> None:
    total, lora, head, types = COUNTS[size, search]
    with torch.device("meta"):
        model = LoRATForTracking(LoRATConfig.published(size, search))
        assert sum(p.numel() for p in model.parameters()) == total
        assert sum(p.numel() for p in model.head.parameters()) == head
        model.requires_grad_(False)
        model.add_adapter(lora_config())
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(count for name, count in trainable.items() if ".lora_" in name) == lora
    assert sum(trainable.values()) == lora + head + types
    pairs = [name for name in trainable if ".lora_A." in name]
    assert len(pairs) == 6 * model.config.num_hidden_layers


def tiny_dinov2(swiglu: bool = False) -> Dinov2Model:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=98, patch_size=14,
        use_swiglu_ffn=swiglu, layer_norm_eps=1e-6,
    )  # fmt: skip
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=["transformers4", "transformers5"])
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def save_dinov2(model: Dinov2Model, folder: Path, form: str) -> Path:
    """A folder that transformers writes, in either of its two name forms."""
    model.save_pretrained(folder, save_original_format=form == "transformers4")
    names = load_file(folder / "model.safetensors")
    assert any(".attention.attention.query." in name for name in names) == (form == "transformers4")
    assert any(".attention.q_proj." in name for name in names) == (form == "transformers5")
    return folder


@pytest.mark.parametrize("swiglu", [False, True])
def test_start_from_a_dinov2_folder(swiglu: bool, form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tiny_dinov2(swiglu)
    folder = save_dinov2(source, tmp_path / "dinov2", form)
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        model = LoRATForTracking.from_pretrained(folder, search_size=56, template_size=28)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "fills the trunk of LoRATForTracking; new and to be trained: head.box.0" in said[0]
    assert "model.embeddings.token_type" in said[0] and "layers" not in said[0]
    assert len(model.uninitialized_keys) == 13
    config, trunk = model.config, model.model
    trunk.layers[-1].is_last = False  # all rows, as in DINOv2
    assert (config.hidden_size, config.num_hidden_layers, config.use_swiglu_ffn) == (32, 2, swiglu)
    assert model.name_or_path == str(folder)
    layout = trunk.layout(4)
    tokens = torch.randn(2, layout.tokens, 32)
    with torch.no_grad():
        expected, found = tokens, tokens
        for theirs, ours in zip(source.encoder.layer, trunk.layers, strict=True):
            expected = theirs(expected)
            found = ours(found, None, layout)[0]
        torch.testing.assert_close(trunk.norm(found), source.layernorm(expected), atol=1e-5, rtol=1e-5)
        pixels = torch.randn(1, 3, 56, 56)
        patches = source.embeddings.patch_embeddings(pixels)
        position = source.embeddings.interpolate_pos_encoding(torch.zeros(1, 17, 32), 56, 56)[:, 1:]
        model.model.embeddings.token_type.weight.zero_()
        torch.testing.assert_close(trunk.embeddings.search(pixels[:, None]), patches + position, atol=1e-5, rtol=0)
        assert model.head.score[0].weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert trunk.embeddings.position.shape == (1, 16, 32)


def test_an_incomplete_dinov2_is_an_error(tmp_path: Path) -> None:
    folder = save_dinov2(tiny_dinov2(), tmp_path / "dinov2", "transformers4")
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("encoder.layer.1.mlp.fc2.bias")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"no complete DINOv2: 1 tensors missing .encoder\.layer\.1\.mlp\.fc2\.bias"):
        LoRATForTracking.from_pretrained(folder, search_size=56, template_size=28)
    registers = Dinov2WithRegistersConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56)
    Dinov2WithRegistersModel(registers).save_pretrained(tmp_path / "registers")
    with pytest.raises(ValueError, match="DINOv2 with registers"):
        LoRATForTracking.from_pretrained(tmp_path / "registers")


def test_the_search_size_belongs_to_a_base(tmp_path: Path) -> None:
    """A plain DINOv2 takes any, a published one with its template; a tracker has one."""
    base = save_dinov2(tiny_dinov2(), tmp_path / "dinov2", "transformers5")
    model = LoRATForTracking.from_pretrained(base, search_size=378, output_loading_info=True)[0]
    assert (model.config.template_size, model.config.search_grid) == (196, 27)
    model.save_pretrained(tmp_path / "tracker")
    with pytest.raises(ValueError, match=r"search_size is 224, but .*tracker was made for 378"):
        LoRATForTracking.from_base(tmp_path / "tracker", search_size=224)
    with pytest.raises(ValueError, match=r"A plain DINOv2 becomes one by LoRATForTracking\.from_base"):
        AutoTracker.from_pretrained(base)


def test_an_adapter_must_hold_what_dinov2_lacks(tmp_path: Path) -> None:
    base = save_dinov2(tiny_dinov2(), tmp_path / "dinov2", "transformers5")
    sizes = {"search_size": 56, "template_size": 28}
    with pytest.raises(ValueError, match=r"without model\.embeddings\.token_type, and .*modules_to_save"):
        LoRATForTracking.from_base(base, adapter_config=lora_config(modules_to_save=["head"]), **sizes)


def test_adapter_on_a_plain_dinov2(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The adapter's base is DINOv2 itself: head and token types come with the adapter."""
    base = save_dinov2(tiny_dinov2(), tmp_path / "dinov2", form)
    torch.manual_seed(1)
    model = LoRATForTracking.from_base(base, search_size=56, template_size=28)
    pairs = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    assert len(pairs) == 2 * 6 * 2
    for name, parameter in pairs.items():
        assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    others = trained - set(pairs)
    assert all(".modules_to_save.default." in name for name in others) and len(others) == 13
    model.eval().save_pretrained(tmp_path / "adapter")
    torch.manual_seed(2)
    loaded = AutoTracker.from_pretrained(tmp_path / "adapter")
    assert not caplog.records
    feed = inputs(model.config)
    assert torch.equal(maps(loaded, feed), maps(model, feed))
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == len(trained)
    processor = TrackerImageProcessor.from_pretrained(tmp_path / "adapter")
    assert (processor.crop_style, processor.search_size, processor.template_size) == ("lorat", 56, 28)


def tiny(**fields) -> LoRATForTracking:
    """A tracker whose numbers are random, as after training."""
    torch.manual_seed(0)
    model = LoRATForTracking(LoRATConfig(**(TINY | fields))).eval()
    scramble(model, 0.1)
    return model


def with_lora(model: LoRATForTracking) -> LoRATForTracking:
    model.requires_grad_(False)
    model.add_adapter(lora_config(4, 8))
    scramble(model, 0.1, trainable_only=True)
    return model.eval()


@pytest.mark.parametrize("swiglu", [False, True])
def test_merged_is_a_plain_model(swiglu: bool, tmp_path: Path) -> None:
    model = with_lora(tiny(use_swiglu_ffn=swiglu))
    feed = inputs(model.config)
    expected = maps(model, feed)
    assert model.merge_and_unload() is model and not model.has_adapter
    assert (maps(model, feed) - expected).abs().max() <= 2e-6
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in tiny().named_parameters()} or swiglu
    model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").is_file() and not (tmp_path / "adapter_config.json").exists()
    loaded = AutoTracker.from_pretrained(tmp_path)
    assert type(loaded) is LoRATForTracking and torch.equal(maps(loaded, feed), maps(model, feed))
    with pytest.raises(ValueError, match="has no adapter"):
        loaded.merge_and_unload()
    loaded.add_adapter(lora_config(2))  # a merged model is a base like any other


def test_an_adapter_that_no_weight_can_hold_is_not_merged() -> None:
    model = tiny(streams=2, modality="depth")
    model.add_adapter(AMGLoraConfig(adapter_layers=[1]))
    with pytest.raises(ValueError, match="cannot be merged into the base: guidance mixes the streams"):
        model.merge_and_unload()
    assert model.has_adapter


@pytest.mark.parametrize("fields", [{}, {"use_swiglu_ffn": True}, {"streams": 2, "modality": "depth"}])
def test_packed_is_plain(fields: dict) -> None:
    model = with_lora(tiny(**fields))
    feed = inputs(model.config)
    expected = maps(model, feed)
    embedded = model.embed_template(feed["template"], feed["template_mask"])
    model.pack()
    assert (maps(model, feed) - expected).abs().max() <= 1e-5
    assert (maps(model, {"search": feed["search"], "template": embedded}) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("fusion", ["mean", "sum"])
def test_two_streams_without_an_adapter(fusion: str) -> None:
    one, two = tiny(), tiny(streams=2, modality="thermal", fusion=fusion)
    feed = inputs(two.config)
    singles = [
        one.model(feed["search"][:, s : s + 1], feed["template"][:, :, s : s + 1], feed["template_mask"])
        for s in range(2)
    ]
    fused = two.model(**feed).last_hidden_state
    total = sum(single.last_hidden_state for single in singles)
    torch.testing.assert_close(fused, total if fusion == "sum" else total / 2, atol=2e-6, rtol=0)


def test_junction_tuner_stands_on_this_trunk_unless_training_passes_it_by() -> None:
    model = tiny(streams=2, modality="depth", num_hidden_layers=3)
    feed = inputs(model.config)
    plain = maps(model, feed)
    model.requires_grad_(False)
    model.add_adapter(AMGLoraConfig(r=2, hmoe_rank=2, adapter_layers=[1]))
    assert (maps(model.eval(), feed) - plain).abs().max() > 1e-4
    model.train()(**feed, labels=torch.tensor([[0.3, 0.35, 0.3, 0.2]]).repeat(2, 1)).loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert grads and all(grad is not None for grad in grads)
    giant = tiny(streams=2, modality="depth", drop_path_rate=0.4)
    with pytest.raises(ValueError, match=r"AMGLoraModel cannot stand on attention_junction.*drop_path_rate=0\.1"):
        giant.add_adapter(AMGLoraConfig(adapter_layers=[1]))


@pytest.mark.parametrize(("rate", "streams"), [(0.1, 1), (0.4, 1), (0.4, 2)])
def test_stochastic_depth(rate: float, streams: int) -> None:
    """One rate in all layers; above 0.1 a part of the batch is drawn for each sub-layer, both streams of a pair."""
    fields = {"streams": streams, "modality": "depth" if streams == 2 else "rgb"}
    model, plain = tiny(drop_path_rate=rate, **fields), tiny(**fields)
    feed = inputs(model.config, batch=5)
    expected = maps(plain, feed)
    assert torch.equal(maps(model, feed), expected)
    assert (maps(plain.train(), feed) - expected).abs().max() <= 1e-6
    layer = model.train().model.layers[0]
    layout = model.model.layout(4)
    assert layer.attention_junction.drop_path_rate == model.model.layers[1].mlp_junction.drop_path_rate == rate
    x = torch.randn(5 * streams, layout.tokens, 32)
    torch.manual_seed(0)
    totals = torch.stack([layer(x, None, layout)[0].detach() for _ in range(400)])
    if rate > 0.1:
        changed = (totals[0] != x).flatten(1).any(1).view(streams, 5)
        assert changed.sum() <= 2 * 3 * streams and bool((changed == changed[:1]).all())
        rows, factor = layer._draw(x, layout)
        assert (len(rows), factor) == (3 * streams, 5 / 3)
    with torch.no_grad():  # the first sub-layer is right in the mean
        y = layer.attention.project(layer.attention.attend(layer.norm1(x), layer.norm1(x), layout)[0])
        layer.mlp.scale.gamma.zero_()
        mean = torch.stack([layer(x, None, layout)[0] for _ in range(600)]).mean(0)
    assert (mean - x - y).abs().mean() <= 0.1 * y.abs().mean()


def test_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = with_lora(tiny(drop_path_rate=0.4))
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        model.train()(**inputs(model.config), labels=torch.tensor([[0.3, 0.35, 0.3, 0.2]] * 2)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 2 * 12 + 13
    for name, grad in gradients[0].items():
        torch.testing.assert_close(grad, gradients[1][name], msg=name)


def test_as_a_transformers_model() -> None:
    """Attention implementations, states on request, bfloat16, compiling and export."""
    model = with_lora(tiny())
    feed = inputs(model.config)
    expected = maps(model, feed)
    model.set_attn_implementation("eager")
    assert (maps(model, feed) - expected).abs().max() <= 1e-5
    output = model(**feed, output_hidden_states=True, output_attentions=True)
    # the last layer has queries for the search rows only
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 2, 20, 20), (2, 2, 16, 20)]
    assert output.hidden_states[1].shape == (2, 20, 32) and isinstance(model(**feed, return_dict=False), tuple)
    model.set_attn_implementation("sdpa")
    torch._dynamo.reset()
    assert (maps(torch.compile(model, fullgraph=True, backend="eager"), feed) - expected).abs().max() <= 1e-5
    exported = torch.export.export(model, (), feed).module()
    assert (maps(exported, feed) - expected).abs().max() <= 1e-5
    low = {name: value.bfloat16() for name, value in feed.items()}
    output = model.to(torch.bfloat16)(**low)
    assert output.score_map.dtype == output.boxes.dtype == torch.float32
    assert (torch.cat([output.score_map, output.box_map], 1) - expected).abs().max() <= 0.05


def test_template_mask_is_needed_and_used() -> None:
    model = tiny()
    feed = inputs(model.config)
    expected = maps(model, feed)
    with torch.no_grad():
        tokens = model.embed_template(feed["template"], feed["template_mask"])
        moved = model.embed_template(feed["template"], 1 - feed["template_mask"]) - tokens
        types = model.model.embeddings.token_type.weight
        torch.testing.assert_close(moved[:, :2], (types[0] - types[1]).expand(2, 2, -1), atol=1e-5, rtol=0)
        torch.testing.assert_close(moved[:, 2:], (types[1] - types[0]).expand(2, 2, -1), atol=1e-5, rtol=0)
    assert torch.equal(maps(model, feed | {"template_mask": feed["template_mask"] * 7 > 0}), expected)
    for wrong, message in ((None, "is missing"), (torch.ones(2, 1, 4, 4), r"has shape \[2, 1, 4, 4\]")):
        with pytest.raises(ValueError, match=rf"template_mask {message}, expected \[2, 1, 2, 2\]"):
            model(**(feed | {"template_mask": wrong}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 33}, "33 is no multiple of 2 heads"),
        ({"search_size": 60}, "search_size 60 is no multiple of patch_size 14"),
        ({"template_size": 70}, "template_size 70 is above search_size 56"),
        ({"streams": 3}, r"streams is 3, expected one of \(1, 2\)"),
        ({"fusion": "max"}, "fusion is 'max'"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate is 1\.0, expected in \[0, 1\)"),
        ({"window_penalty": -0.1}, "window_penalty is -0.1"),
    ],
)
def test_config_errors(fields: dict, message: str) -> None:
    with pytest.raises(Exception, match=message):
        LoRATConfig(**(TINY | fields))
    with pytest.raises(ValueError, match="no LoRAT of size 'huge'"):
        LoRATConfig.published("huge")


def moving(count: int) -> tuple[list[np.ndarray], np.ndarray]:
    random = np.random.default_rng(0)
    frames, boxes = [], []
    for i in range(count):
        frame = random.integers(0, 90, (120, 160, 3), dtype=np.uint8)
        frame[40 + i : 62 + i, 60 + 2 * i : 90 + 2 * i] = (240, 60, 20)
        frames.append(frame)
        boxes.append([60 + 2 * i, 40 + i, 30, 22])
    return frames, np.array(boxes, dtype=np.float64)


@pytest.mark.parametrize("pack", [False, True])
def test_tracks_through_tracker(pack: bool, tmp_path: Path) -> None:
    """The session cuts, masks, pads and decodes by LoRAT's rules, from files alone."""
    model = with_lora(tiny(search_size=112, template_size=56))
    frames, boxes = moving(4)
    model.merge_and_unload().save_pretrained(tmp_path)
    model.image_processor().save_pretrained(tmp_path)
    tracker = Tracker.from_pretrained(tmp_path, pack=pack)
    processor = tracker.image_processor
    session = tracker.start(frames[0], boxes[0])
    expected = boxes[0]
    template, where = processor.crop(frames[0], boxes[0], "template")
    template = processor.normalize(processor.to_tensor([template]))[:, None]
    mask = processor.template_mask([where], model.config.template_grid)[:, None]
    assert 0 < int(mask.sum()) < mask.numel()
    for frame in frames[1:]:
        picture, where = processor.crop(frame, expected, "search", processor.padding(frames[0]))
        with torch.no_grad():
            output = model(processor.normalize(processor.to_tensor([picture])), template, mask)
        grid = model.config.search_grid
        score = output.score_map[0, 0].numpy()
        window = np.outer(np.hanning(grid), np.hanning(grid))
        row, column = divmod(int((0.55 * score + 0.45 * window).argmax()), grid)
        x1, y1, x2, y2 = output.box_map[0, :, row, column].tolist()
        box = processor.box_from_crop([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], where)
        corners = np.concatenate([box[:2], box[:2] + box[2:]]).clip(0, [160, 120, 160, 120])
        found = session.update(frame)
        if (corners[2:] > corners[:2]).all():
            expected = np.concatenate([corners[:2], corners[2:] - corners[:2]])
        np.testing.assert_allclose(found.box, expected, rtol=0, atol=2e-2 if pack else 1e-3)
        assert found.score == pytest.approx(float(score[row, column]), abs=1e-4)


def test_a_box_that_leaves_the_frame_stays_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    frames, boxes = moving(2)
    tracker = Tracker(model, model.image_processor())
    session = tracker.start(frames[0], boxes[0])
    monkeypatch.setattr(model, "decode", lambda output, window: (torch.tensor([[9.0, 9.0, 0.1, 0.1]]), torch.ones(1)))
    assert session.update(frames[1]).box.tolist() == boxes[0].tolist()


def inputs(config: LoRATConfig, batch: int = 2) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    search, template = (
        torch.randn(*lead, config.streams, 3, size, size, generator=random)
        for lead, size in (((batch,), config.search_size), ((batch, 1), config.template_size))
    )
    mask = torch.zeros(batch, 1, config.template_grid, config.template_grid)
    mask[:, :, :1] = 1
    return {"search": search, "template": template, "template_mask": mask}


@torch.no_grad()
def maps(model: LoRATForTracking, feed: dict[str, torch.Tensor]) -> torch.Tensor:
    output = model(**feed)
    return torch.cat([output.score_map, output.box_map], 1)
