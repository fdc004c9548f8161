"""Official SPMTrack files to adapter folders: the experts' sizes, alpha, the frozen part, what is missing."""

from pathlib import Path

import pytest
import torch
from parity_tools import cases, load_case
from safetensors.torch import load_file, save_file
from test_parity_spmtrack import drawn, logits_of, masks, official_model, official_net
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from mmtrackers import AutoTracker, SPMTrackForTracking, Tracker
from mmtrackers.conversion.systems import convert_checkpoint
from mmtrackers.hub.adapters import base_state_dict

CASES = cases(r"spmtrack-(small|swiglu)")
pytestmark = pytest.mark.skipif(len(CASES) != 2, reason="fixtures spmtrack-small and spmtrack-swiglu are not here")
SIZES = {"search_size": 84, "template_size": 42}


class Official:
    """A fixture as the authors' files: what was trained, in safetensors under another name, and the frozen base."""

    def __init__(self, name: str, folder: Path):
        self.description, self.tensors = load_case(name)
        self.net, self.folder = official_net(self.description), folder
        adapted = official_model(self.description)
        base = SPMTrackForTracking(adapted.config)
        base.load_state_dict(base_state_dict(adapted))
        for module in (base.head, base.model.track_token, base.model.embeddings.token_type):  # not the trained ones
            for parameter in module.parameters():
                parameter.data.zero_()
        base.save_pretrained(folder / "base")

    def file(self, name: str = "model.bin", **changes: Tensor | None) -> Path:
        trained = {n: t for n, t in self.net.items() if n in self.description["train"]["checkpoint_keys"]}
        config = self.description["config"]
        scalars = {"expert_alpha": torch.tensor(config["alpha"]), "use_rsexpert": torch.tensor(False)}
        tensors = {n: t for n, t in (trained | scalars | changes).items() if t is not None}
        save_file(tensors, self.folder / name)
        return self.folder / name

    @torch.no_grad()
    def check(self, model: SPMTrackForTracking) -> None:
        search, template = drawn(self.description, "step1")
        state = self.tensors["step0.out.state"]
        state = torch.cat([state, torch.zeros_like(state)])
        output = model(search, template, masks(self.tensors, "step1"), state=state)
        torch.testing.assert_close(logits_of(output), self.tensors["step1.out.score_map"], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(output.state, self.tensors["step1.out.state"], atol=5e-6, rtol=0)


@pytest.fixture
def small(tmp_path: Path) -> Official:
    return Official("spmtrack-small", tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_published_form(name: str, tmp_path: Path) -> None:
    official = Official(name, tmp_path)
    file, config = official.file(), official.description["config"]
    assert set(official.description["train"]["checkpoint_keys"]) <= set(load_file(file))
    report = convert_checkpoint("spmtrack", file, tmp_path / "out", base=tmp_path / "base", **SIZES)
    assert report.differences == {"numbers": 0.0, "forward": 0.0}
    text = f"{config['num_experts']} experts of rank {config['r']}, alpha {config['alpha']:g}, as the file says"
    assert text in str(report)
    loaded = AutoTracker.from_pretrained(tmp_path / "out")
    assert type(loaded) is SPMTrackForTracking
    assert loaded.peft_config["default"].scaling == config["alpha"] / config["r"]
    official.check(loaded)
    tracker = Tracker.from_pretrained(tmp_path / "out", pack=True)
    official.check(tracker.model)
    assert tracker.image_processor.crop_style == "lorat"
    assert "TMOE" in (tmp_path / "out" / "README.md").read_text()


def test_alpha(small: Official, tmp_path: Path) -> None:
    bare = small.file("bare.bin", expert_alpha=None, use_rsexpert=None)
    report = convert_checkpoint("spmtrack", bare, tmp_path / "one", base=tmp_path / "base", **SIZES)
    assert "alpha 1, which the official code leaves out of its files for 1" in str(report)
    convert_checkpoint("spmtrack", bare, tmp_path / "two", base=tmp_path / "base", alpha=16.0, **SIZES)
    small.check(AutoTracker.from_pretrained(tmp_path / "two"))
    with pytest.raises(ValueError, match=r"alpha is 8, but .* says 16"):
        convert_checkpoint("spmtrack", small.file(), tmp_path / "no", base=tmp_path / "base", alpha=8, **SIZES)
    rooted = small.file("rooted.bin", use_rsexpert=torch.tensor(True), expert_alpha=torch.tensor(16 / 8**0.5))
    convert_checkpoint("spmtrack", rooted, tmp_path / "three", base=tmp_path / "base", **SIZES)
    small.check(AutoTracker.from_pretrained(tmp_path / "three"))


def test_whole_form_must_stand_on_the_base(small: Official, tmp_path: Path) -> None:
    scalars = {"expert_alpha": torch.tensor(16), "use_rsexpert": torch.tensor(False)}
    save_file(small.net | scalars, tmp_path / "whole.safetensors")
    convert_checkpoint(
        "spmtrack", tmp_path / "whole.safetensors", tmp_path / "out", base=tmp_path / "base", template_size=42
    )
    small.check(AutoTracker.from_pretrained(tmp_path / "out"))
    other = small.net | scalars | {"norm.bias": small.net["norm.bias"] + 1e-3}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"another base than .*1 of .* differ: model\.norm\.bias"):
        convert_checkpoint(
            "spmtrack", tmp_path / "other.safetensors", tmp_path / "no", base=tmp_path / "base", template_size=42
        )
    assert not (tmp_path / "no").exists()


def test_files_that_do_not_fit(small: Official, tmp_path: Path) -> None:
    expert = "blocks.1.mlp.fc1.tmoe.routed_experts.2"
    foreign = {"blocks.0.attn.proj.lora.A": torch.zeros(4, 64)}
    for file, options, message in (
        (small.file(), {}, "what was trained only: give the DINOv2"),
        (small.file("half.bin", **{expert: None}), {"base": tmp_path / "base"}, "1 of another shape: .*fc1.tmoe_up"),
        (small.file("less.bin", track_query=None), {"base": tmp_path / "base"}, "1 missing: .*track_token.start"),
        (small.file("odd.bin", surprise=torch.zeros(1)), {"base": tmp_path / "base"}, "unexpected entry 'surprise'"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_checkpoint("spmtrack", file, tmp_path / "no", **options, **SIZES)
        assert not (tmp_path / "no").exists()
    save_file({"token_type_embed": torch.zeros(3, 64)} | foreign, tmp_path / "lorat.bin")
    with pytest.raises(ValueError, match="has no experts"):
        convert_checkpoint("spmtrack", tmp_path / "lorat.bin", tmp_path / "no", base=tmp_path / "base", **SIZES)
    with pytest.raises(ValueError, match="convert it as 'spmtrack'"):
        convert_checkpoint("lorat", small.file(), tmp_path / "no", base=tmp_path / "base", **SIZES)


def test_on_a_plain_dinov2(small: Official, tmp_path: Path) -> None:
    """The published way: the base is DINOv2, the crops have 378 and 196 pixels."""
    torch.manual_seed(0)
    config = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    Dinov2Model(Dinov2Config(patch_size=14, image_size=70, **config)).save_pretrained(tmp_path / "dinov2")
    convert_checkpoint("spmtrack", small.file(), tmp_path / "out", base=tmp_path / "dinov2")
    loaded = AutoTracker.from_pretrained(tmp_path / "out")
    assert (loaded.config.template_grid, loaded.config.search_grid) == (14, 27)
    processor = Tracker.from_pretrained(tmp_path / "out").image_processor
    assert (processor.search_factor, processor.template_factor) == (5.0, 2.0)
