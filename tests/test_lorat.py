"""LoRAT beyond its numbers: sizes, adapter, start from DINOv2, merging, tracking, two streams."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from mmtrackers import AutoTracker, LoRATConfig, LoRATForTracking, TrackerImageProcessor
from mmtrackers.models.lorat import lora_config

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
    assert len(model.new_tensors) == 13
    config, trunk = model.config, model.model
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
