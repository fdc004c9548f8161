"""What every tracker model must do, one row per model (`model_rows.ROWS`)."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_rows import ROWS, TINY, Row, difference, inputs, labels, maps, scramble, template_tokens
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import Tensor, nn

from mmtrackers import AutoTracker, OSTrackConfig, OSTrackModel, SEATrackConfig, Tracker


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def test_config_round_trip(row: Row, tmp_path: Path) -> None:
    config = row.make_config(elimination_keep_rate=0.5, mlp_ratio=3)
    config.save_pretrained(tmp_path)
    loaded = row.config.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() | {"transformers_version": loaded.transformers_version}
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == row.config.model_type
    assert list(loaded.elimination_layers) == list(config.elimination_layers)
    assert (loaded.search_grid, loaded.template_grid, loaded.intermediate_size) == (4, 2, 96)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"elimination_layers": "all"}, "elimination_layers"),
        ({"hidden_size": 33}, "hidden_size 33 is no multiple of 2 heads"),
        ({"num_hidden_layers": 20_000}, "num_hidden_layers is 20000, expected 1 to 256"),
        ({"num_hidden_layers": 200, "hidden_size": 16_384}, "200 layers of width 16384 and .* weights, expected"),
        ({"search_size": 4096}, "search_size 4096 makes more than 128 x 128 patches of 16 pixels"),
        ({"mlp_ratio": -1}, "mlp_ratio is -1, expected 1 to 64"),
        ({"search_size": 65}, "search_size 65 is no multiple of patch_size 16"),
        ({"template_size": 40}, "template_size 40 is no multiple of patch_size 16"),
        ({"streams": 3}, r"streams is 3, expected one of \(1, 2\)"),
        ({"modality": "lidar"}, "modality is 'lidar', expected one of .*'thermal'"),
        ({"fusion": "max"}, "fusion is 'max', expected one of .*'mean'"),
        ({"stem": "conv", "patch_size": 12, "search_size": 60, "template_size": 24}, "power of two, got 12"),
        ({"elimination_keep_rate": 0.0}, "elimination_keep_rate is 0.0, expected in"),
        ({"stem": "mlp"}, "stem is 'mlp', expected one of .*'conv'"),
        ({"streams": 2, "modality": "thermal", "elimination_layers": [1]}, "one stream only.*elimination_layers="),
    ],
)
def test_config_errors(row: Row, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        row.make_config(**fields)


def test_save_and_load(row: Row, tmp_path: Path) -> None:
    model = row.plain()
    expected = maps(model, feed := inputs(model.config))
    for name, options in {"whole": {}, "shards": {"max_shard_size": "20KB"}}.items():
        model.save_pretrained(tmp_path / name, **options)
        loaded, info = row.model.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        assert difference(maps(loaded, feed), expected) == 0
        assert type(AutoTracker.from_pretrained(tmp_path / name)) is row.model
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1


def test_attention_implementations_agree(row: Row) -> None:
    model = row.build()
    feed = inputs(model.config)
    results = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "is_causal")} == {name}
        results[name] = maps(model, feed)
    assert difference(results["sdpa"], results["eager"]) <= 1e-5


def test_checkpointing_gives_the_same_gradients(row: Row) -> None:
    grads = []
    for checkpointing in (False, True):
        model = row.build()
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        model(**inputs(model.config), labels=labels()).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and grads[0]
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], rtol=1e-5, atol=1e-7), name


def test_tuple_output_states_and_attentions(row: Row) -> None:
    model = row.build()
    model.set_attn_implementation("eager")
    feed, config = inputs(model.config), model.config
    output = model(**feed, output_hidden_states=True, output_attentions=True)
    values = model(**feed, return_dict=False)
    assert isinstance(values, tuple)
    for value, name in zip(values, ("boxes", "score_map", "size_map", "offset_map"), strict=False):
        assert torch.equal(value, output[name])
    rows, search = config.streams * 2, config.search_grid**2
    layers = config.num_hidden_layers
    assert len(output.attentions) == layers and len(output.hidden_states) == layers + 1
    prefix = 0 if output.state is None else output.state.shape[1]
    template = template_tokens(config)
    assert output.attentions[0].shape == (rows, 2, *[prefix + template + search] * 2)
    assert torch.allclose(output.attentions[0].sum(-1), torch.ones(()), atol=1e-5)
    kept = math.ceil(config.elimination_keep_rate * search) if config.elimination_layers else search
    # the last layer has queries for the rows that are read only
    assert output.attentions[-1].shape == (rows, 2, prefix + kept, prefix + template + kept)
    assert output.hidden_states[1].shape[0] == rows and output.hidden_states[1].shape[-1] == config.hidden_size
    plain = model(**feed)
    assert plain.hidden_states is None and plain.attentions is None and plain.loss is None


def test_bfloat16_is_near_float32(row: Row) -> None:
    model = row.build()
    expected = maps(model, inputs(model.config))
    model.to(torch.bfloat16)
    output = model(**inputs(model.config, dtype=torch.bfloat16))
    assert output.score_map.dtype == output.boxes.dtype == torch.float32
    actual = torch.cat([output.score_map, output.size_map, output.offset_map], dim=1)
    assert actual.isfinite().all()
    assert difference(actual, expected) <= 0.1


def test_compiles_without_graph_break(row: Row) -> None:
    model = row.build()
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert difference(maps(compiled, feed := inputs(model.config)), maps(model, feed)) <= 1e-5


@pytest.mark.parametrize(
    ("role", "change", "message"),
    [
        ("search", lambda x: x[..., :-1], "search has shape .* expected .B, {s}, 3, 64, 64."),
        ("search", lambda x: x[:, 0], "search has shape .* expected .B, {s}, 3, 64, 64."),
        ("search", lambda x: torch.cat([x, x], 1), "search has shape .*{s} stream"),
        ("template", lambda x: x[:, 0], "template has shape .* expected .B, T, {s}, 3, 32, 32."),
        ("template", lambda x: x[..., :16], "template has shape .* expected .B, T, {s}, 3, 32, 32."),
        ("template", lambda x: torch.zeros(1, 4, 32), "template has .1, 4, 32. tokens, expected"),
        ("template", lambda x: torch.zeros(2 * x.shape[2], 4, 16), "template has .*, 16. tokens, expected .*32"),
        ("template", lambda x: torch.zeros(2 * x.shape[2], 5, 32), r"template has .*, 5, 32. tokens, .*T \* 4"),
        ("template", lambda x: x[:1], "template has .* expected"),
    ],
)
def test_wrong_shapes(row: Row, role: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    model = row.build()
    feed = inputs(model.config)
    feed[role] = change(feed[role])
    with pytest.raises(ValueError, match=message.format(s=model.config.streams)):
        model(**feed)


def test_samples_do_not_mix(row: Row) -> None:
    model = row.build()
    feed = inputs(model.config)
    alone = [maps(model, {role: value[i : i + 1] for role, value in feed.items()}) for i in range(2)]
    assert difference(maps(model, feed), torch.cat(alone)) <= 1e-5
    tokens = model.embed_template(feed["template"])
    assert tokens.shape == (2 * model.config.streams, template_tokens(model.config), 32)
    assert difference(maps(model, feed | {"template": tokens}), maps(model, feed)) == 0


@pytest.mark.parametrize("fusion", ["sum", "mean"])
@pytest.mark.parametrize("config", [OSTrackConfig, SEATrackConfig])
def test_streams_are_separate_until_their_fusion(config: type[OSTrackConfig], fusion: str) -> None:
    torch.manual_seed(0)
    single = OSTrackModel(OSTrackConfig(**TINY, elimination_layers=[])).eval()
    fields = {"streams": 2, "modality": "depth", "elimination_layers": [], "fusion": fusion}
    double = OSTrackModel(config(**TINY, **fields)).eval()
    scramble(single, 0.1)
    double.load_state_dict(single.state_dict())
    feed = inputs(double.config)
    alone = sum(
        single(feed["search"][:, s : s + 1], feed["template"][:, :, s : s + 1]).last_hidden_state for s in range(2)
    )
    fused = double(**feed).last_hidden_state
    assert difference(fused, alone if fusion == "sum" else alone / 2) <= 2e-6


def test_frozen_batch_norms_keep_their_statistics(row: Row) -> None:
    model = row.build()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for frozen in (True, False):
        for norm in norms:
            norm.requires_grad_(not frozen)
        before = [norm.running_mean.clone() for norm in norms]
        model.train()(**inputs(model.config))
        assert {norm.training for norm in norms} == {not frozen}
        assert all(torch.equal(norm.running_mean, old) == frozen for norm, old in zip(norms, before, strict=True))
    assert model.training and not model.eval().training


def test_labels_of_another_shape(row: Row) -> None:
    model = row.build()
    for wrong in (torch.rand(3, 4), torch.rand(2, 5), torch.rand(4)):
        with pytest.raises(ValueError, match=r"labels have shape .* expected \[2, 4\]"):
            model(**inputs(model.config), labels=wrong)


def test_loss_and_gradients_of_the_trainable(row: Row) -> None:
    model = row.build().train()
    output = model(**inputs(model.config), labels=labels())
    assert set(output.loss_parts) == {"giou", "l1", "focal", "iou"}
    parts = output.loss_parts
    own = 0 if output.auxiliary_loss is None else output.auxiliary_loss
    assert torch.allclose(output.loss, 2 * parts["giou"] + 5 * parts["l1"] + parts["focal"] + own)
    output.loss.backward()
    prefix = "" if row.adapter is None else PEFT_TYPE_TO_PREFIX_MAPPING[row.adapter().peft_type]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert not parameter.requires_grad or prefix in name, name


def test_drop_path_acts_in_training_only(row: Row) -> None:
    model, plain = row.build(drop_path_rate=0.6), row.build()
    feed = inputs(model.config)
    expected = maps(plain, feed)
    assert torch.equal(maps(model, feed), expected)
    for norm in model.head.modules():  # so that batch norms do not differ between the modes
        norm.requires_grad_(False)
    model.train()
    plain.head.requires_grad_(False)
    torch.manual_seed(0)
    assert len({maps(model, feed).mean().item() for _ in range(6)}) > 1
    if row.fields.get("stem") != "conv":
        assert difference(maps(plain.train(), feed), expected) <= 1e-6
    rates = [layer.mlp_junction for layer in model.model.layers]
    rates = [getattr(junction, "base_layer", junction).drop_path_rate for junction in rates]
    assert rates == pytest.approx([0.0, 0.3, 0.6])


def test_initial_values(row: Row) -> None:
    torch.manual_seed(0)
    model = row.model(row.make_config(hidden_size=64))
    for name, module in model.named_modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, nn.Linear):
            assert weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert weight.abs().max() <= 2.0
        elif isinstance(module, nn.Conv2d) and weight.numel() > 1000:
            size = weight[0, 0].numel()
            bound = math.sqrt(6 / (size * (module.in_channels + module.out_channels)))
            assert bound * 0.98 <= weight.abs().max().item() <= bound, name
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            assert (weight == 1).all(), name
        assert bias is None or not bias.any(), name
    for table, cells in (("template_position", 4), ("search_position", 16)):
        position = getattr(model.model.embeddings, table)
        assert position.shape == (1, cells, 64) and position.std().item() == pytest.approx(0.02, rel=0.15)


@torch.no_grad()
def test_position_tables(row: Row) -> None:
    model = row.build()
    feed, embeddings = inputs(model.config), model.model.embeddings
    feed["template"] = feed["template"][:, :1].repeat(1, 2, 1, 1, 1, 1)
    before = model.embed_template(feed["template"]), embeddings.search(feed["search"])
    ramp = torch.arange(4.0)[:, None]
    embeddings.template_position.add_(ramp)
    assert torch.allclose(model.embed_template(feed["template"]) - before[0], ramp.repeat(2, 1), atol=1e-5)
    assert torch.equal(embeddings.search(feed["search"]), before[1])
    embeddings.search_position.add_(1.0)
    assert torch.allclose(embeddings.search(feed["search"]) - before[1], torch.ones(()), atol=1e-5)
    assert maps(model, feed).isfinite().all()  # two templates


def test_gradients_after_tracking(row: Row) -> None:
    """Nothing that tracking leaves behind stands in the way of a training step, also with gradients in the pixels."""
    model = row.build()
    processor = model.image_processor()
    frame = {"rgb": torch.randint(0, 255, (96, 96, 3), dtype=torch.uint8).numpy()}
    if model.config.streams == 2:
        frame["depth" if model.config.modality in ("any", "depth") else model.config.modality] = frame["rgb"][..., 0]
    if "depth" in frame:
        frame["depth"] = frame["depth"].astype("uint16") * 20
    session = Tracker(model, processor).start(frame, (30, 30, 24, 24))
    session.update(frame)
    feed = inputs(model.config)
    pixels = torch.randint(0, 255, feed["search"].shape).float().requires_grad_()
    feed["search"] = processor.normalize(pixels)
    model.train()(**feed, labels=labels()).loss.backward()
    assert pixels.grad.abs().sum() > 0
