"""
The official code of a tracker, from a checkout of it, as one frame's call: what `benchmark.py --reference` runs.

A checkout of github.com/botaoye/OSTrack, github.com/GXNU-ZhongLab/ODTrack, github.com/AutoLab-SAI-SJTU/SEATrack,
github.com/LitingLin/LoRAT, github.com/WenRuiCai/SPMTrack, or the folder PATrack of
github.com/ouha1998/Learning-Progressive-Adaptation-for-Multi-Modal-Tracking (which must be made to run first), with
what it imports installed: timm, easydict, einops, PyYAML and torchvision among others. Its builder is that of
`BUILDERS`, run with an experiment file of the checkout.
"""

import importlib
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

BUILDERS = {
    "lorat": ("trackit.models.methods.LoRAT.lorat:LoRAT_DINOv2", "config/LoRAT/B-224/config.yaml"),
    "odtrack": ("lib.models.odtrack:build_odtrack", "experiments/odtrack/baseline.yaml"),
    "ostrack": ("lib.models.ostrack:build_ostrack", "experiments/ostrack/vitb_256_mae_ce_32x4_ep300.yaml"),
    "patrack": ("lib.models.patrack.ostrack_adapter:build_patrack", "experiments/patrack/rgbt.yaml"),
    "seatrack": ("lib.models.seatrack:build_seatrack", "experiments/seatrack/rgbt.yaml"),
    "spmtrack": (
        "trackit.models.methods.SPMTrack.SPMTrack_full_finetune:SPMTrackBaseline_DINOv2",
        "config/SPMTrack/dinov2/config.yaml",
    ),
}
STREAMS = {"patrack": 2, "seatrack": 2}
Frame = Callable[[], object]


def reference_frame(path: Path, system: str, builder: str | None, config: str | None) -> tuple[Frame, dict]:
    """The official model of a checkout with random weights, as one frame's call; and the fields of our config that
    make ours do the same work.

    Args:
        path (`Path`): the checkout.
        system (`str`): a key of `BUILDERS`.
        builder (`str`, *optional*): another builder, module:function.
        config (`str`, *optional*): another experiment file, inside the checkout.

    Raises:
        SystemExit: names what is missing.
    """
    default_builder, default_config = BUILDERS[system]
    module_name, _, function = (builder or default_builder).partition(":")
    experiment = path / (config or default_config)
    if not path.is_dir():
        raise SystemExit(f"--reference {path}: no such folder; expected a checkout of the official {system} code.")
    if not experiment.is_file():
        raise SystemExit(f"{experiment}: no such file; name the experiment with --reference-config (inside {path}).")
    sys.path.insert(0, str(path))
    try:
        module = importlib.import_module(module_name)
        if (make := getattr(module, function, None)) is None:
            raise SystemExit(f"{module_name} in {path} has no {function}: name it with --reference-builder.")
        if system in ("lorat", "spmtrack"):
            return _lorat_frame(make, experiment) if system == "lorat" else _spmtrack_frame(make, experiment)
        settings = importlib.import_module(f"lib.config.{system}.config")
    except (ImportError, AttributeError) as error:
        raise SystemExit(
            f"The official code in {path} cannot be imported: {error}. Install what is missing, or name the builder "
            "with --reference-builder module:function."
        ) from error
    settings.update_config_from_file(str(experiment))
    settings.cfg.MODEL.PRETRAIN_FILE = ""
    try:
        model = make(settings.cfg, training=False).eval()
    except Exception as error:
        raise SystemExit(f"{module_name}:{function} of {path} failed: {type(error).__name__}: {error}") from error
    return _ostrack_frame(model, system, settings.cfg)


def _ostrack_frame(model: nn.Module, system: str, settings) -> tuple[Frame, dict]:
    """Of OSTrack's family, which takes `template=` and `search=`."""
    channels, test = 3 * STREAMS.get(system, 1), settings.TEST
    fields = {"search_size": test.SEARCH_SIZE, "template_size": test.TEMPLATE_SIZE}
    backbone = settings.MODEL.BACKBONE
    if system in ("odtrack", "ostrack") and backbone.TYPE.endswith("_ce"):  # without a mask all template tokens vote
        fields |= {"elimination_layers": backbone.CE_LOC, "elimination_mask": "all"}
        fields["elimination_keep_rate"] = backbone.CE_KEEP_RATIO[0]
    template = torch.randn(1, channels, test.TEMPLATE_SIZE, test.TEMPLATE_SIZE)
    search = torch.randn(1, channels, test.SEARCH_SIZE, test.SEARCH_SIZE)
    if system == "odtrack":  # takes lists of templates and of frames
        fields["num_templates"] = test.TEMPLATE_NUMBER
        return lambda: model(template=[template] * test.TEMPLATE_NUMBER, search=[search]), fields
    return lambda: model(template=template, search=search), fields


def _trackit(experiment: Path) -> tuple[dict, nn.Module, dict]:
    """Of LoRAT's family: settings, a DINOv2 of random weights, and our fields."""
    try:
        reader = importlib.import_module("trackit.core.runtime.utils.custom_yaml_loader")
        settings = reader.load_yaml(str(experiment), defaultdict(str))  # constants are paths, not read here
    except ModuleNotFoundError:
        reader = importlib.import_module("trackit.core.boot.funcs.utils.custom_yaml_loader")
        settings = reader.load_yaml(str(experiment))
    trunks = importlib.import_module("trackit.models.backbone.dinov2.builder")
    trunk = trunks.build_dino_v2_backbone(load_pretrained=False, **settings["model"]["backbone"]["parameters"])
    sizes = settings["common"]
    fields = {"template_size": sizes["template_size"][0], "search_size": sizes["search_region_size"][0]}
    return settings, trunk, fields


def _lorat_frame(make: Callable[..., nn.Module], experiment: Path) -> tuple[Frame, dict]:
    """LoRAT with its adapter merged, as its own evaluation has it."""
    settings, trunk, fields = _trackit(experiment)
    sizes = settings["common"]
    model = make(trunk, sizes["template_feat_size"], sizes["search_region_feat_size"]).eval()
    inputs = model.get_sample_data(1, torch.device("cpu"), torch.float32, None)
    return lambda: model(*inputs), fields


def _spmtrack_frame(make: Callable[..., nn.Module], experiment: Path) -> tuple[Frame, dict]:
    """SPMTrack as its own evaluation has it: three references in pixels, experts apart, the last frame's state."""
    settings, trunk, fields = _trackit(experiment)
    sizes, experts = settings["common"], settings["model"]["tmoe"]
    names = ("r", "alpha", "dropout", "use_rsexpert", "expert_nums", "init_method", "shared_expert")
    mixture = [*(experts[name] for name in names), experts["route_compression"]]
    model = make(trunk, sizes["template_feat_size"], sizes["search_region_feat_size"], *mixture).eval()
    for token in (model.track_query, model.query_embed):
        nn.init.normal_(token, std=0.02)
    layers = importlib.import_module("trackit.models.methods.SPMTrack.modules.tmoe.apply")
    for block in model.blocks:  # which its loading of a checkpoint would do
        layers.apply_tmoe(block, layers.find_all_frozen_nn_linear_names(block, inference=True), *mixture)
    model.init_eval(1)
    template = torch.randn(1, 3, fields["template_size"], fields["template_size"])
    search = torch.randn(1, 3, fields["search_size"], fields["search_size"])
    mask = torch.ones(1, *sizes["template_feat_size"], dtype=torch.long)
    others = {"z_1": template, "z_2": template, "z_1_feat_mask": mask, "z_2_feat_mask": mask}
    return lambda: model.forward_tracking([0], template, search, mask, **others), fields
