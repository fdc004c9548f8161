"""
Start weights of `ostrack-tiny`: a small OSTrack with a convolutional stem, initialised so that it learns from little.

    python examples/new_tiny.py out/tiny-start
    python examples/finetune.py --model out/tiny-start --train-base --synthetic pictures --output out/ostrack-tiny ...

Queries and keys start as nearly the same orthogonal map, so attention begins as a comparison of contents (the idea of
"Mimetic initialization of self-attention layers", arXiv 2305.09828): a search token looks at template tokens like it
from the first step, where a plain start spends most of a short training on finding that out.

Resolution is raised late: small crops are cheap while the tracker learns what to look for. A trained OSTrack goes on
at larger crops with its weights, positions resampled:

    python examples/new_tiny.py out/larger-start --larger-from out/ostrack-tiny --search-size 192

With a trained OSTrack, an ODTrack of its sizes starts from its weights and answers nearly as it does from the first
step. Only the track token is new; the head's first convolutions are divided by the nearly constant factor that it puts
on the features:

    python examples/new_tiny.py out/odtrack-start --odtrack-from mmtrackers/pretrained/ostrack-tiny
    python examples/finetune.py --model out/odtrack-start --train-base --templates 3 --searches 2 ...

A LoRAT of that width and depth, with half of LoRAT-224's sizes, starts in the same way:

    python examples/new_tiny.py out/lorat-start --lorat
    python examples/finetune.py --model out/lorat-start --train-base --augmentation deit --synthetic pictures ...
"""

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.nn import functional

from mmtrackers import (
    AutoTracker,
    LoRATConfig,
    LoRATForTracking,
    ODTrackConfig,
    ODTrackForTracking,
    OSTrackConfig,
    OSTrackForTracking,
    TrackerImageProcessor,
)
from mmtrackers.cli.ending import run_script
from mmtrackers.modeling.dinov2 import resample_positions

ALIKE, NOISE, SCORE_BIAS = 0.8, 0.02, -3.0
SIDE_BIAS = -math.log(7)  # a side is an eighth of the crop away: the target's mean size at search factor 4


def tiny_config() -> OSTrackConfig:
    """Width 192, 6 layers, 16 template and 64 search tokens: 3.6 M parameters."""
    return OSTrackConfig(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        template_size=64,
        search_size=128,
        head_channels=96,
        elimination_layers=[],
        stem="conv",
        drop_path_rate=0.0,
    )


def tiny_lorat() -> LoRATForTracking:
    """Width 192, 6 layers, 16 template and 64 search tokens of 14 pixels, and a head that starts with small boxes."""
    model = LoRATForTracking(
        LoRATConfig(
            hidden_size=192, num_hidden_layers=6, num_attention_heads=3, template_size=56, search_size=112
        )
    )  # fmt: skip
    for branch in (model.head.score, model.head.box):
        for linear in branch[::2]:
            nn.init.xavier_uniform_(linear.weight)
    nn.init.constant_(model.head.box[-1].bias, SIDE_BIAS)
    return model


@torch.no_grad()
def compare_contents(model: OSTrackForTracking | LoRATForTracking) -> None:
    """Initial values for a short training, in place."""
    for layer in model.model.layers:
        attention = layer.attention
        shared = nn.init.orthogonal_(torch.empty_like(attention.q_proj.weight), gain=ALIKE)
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.copy_(shared + NOISE * torch.randn_like(shared))
        nn.init.xavier_uniform_(attention.v_proj.weight)
        nn.init.xavier_uniform_(attention.o_proj.weight, gain=0.5)
    # most cells hold no target: a low score from the start keeps the first losses small
    model.head.score[-1].bias.fill_(SCORE_BIAS)


def trained_ostrack(folder: str | Path) -> OSTrackForTracking:
    """The OSTrack in `folder` in float32; ValueError where it holds another tracker."""
    base = AutoTracker.from_pretrained(folder, dtype=torch.float32)
    if type(base) is not OSTrackForTracking:
        raise ValueError(f"{folder} is a {type(base).__name__}, expected an OSTrackForTracking.")
    return base


def sizes_of(base: OSTrackForTracking) -> dict[str, Any]:
    """The arguments of its OSTrackConfig."""
    return {name: getattr(base.config, name) for name in OSTrackConfig.__annotations__}


def larger_from(folder: str | Path, search_size: int) -> OSTrackForTracking:
    """The OSTrack in `folder` for a search crop of `search_size` pixels and a template of half of it."""
    base = trained_ostrack(folder)
    model = OSTrackForTracking(
        OSTrackConfig(**sizes_of(base) | {"search_size": search_size, "template_size": search_size // 2})
    )
    weights, grids = base.state_dict(), {"search": model.config.search_grid, "template": model.config.template_grid}
    for role, side in grids.items():
        name = f"model.embeddings.{role}_position"
        # the tables of image ViTs, for which the resampling is made, begin with a class token's row
        weights[name] = resample_positions(functional.pad(weights[name], (0, 0, 1, 0)), side)
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def level_head(model: ODTrackForTracking) -> float:
    """Divides the head's first convolutions by the mean product of features and track token on noise; returns it."""
    config, random = model.config, torch.Generator().manual_seed(0)
    search, template = (
        torch.randn(8, *lead, 3, side, side, generator=random)
        for lead, side in (((1,), config.search_size), ((1, 1), config.template_size))
    )
    trunk = model.model.eval()(search, template)
    factor = (trunk.last_hidden_state @ trunk.token.transpose(1, 2)).mean().item()
    if factor <= 0:
        raise ValueError(f"The new token's product with the features is {factor:.3g}, no factor: try another --seed.")
    for branch in (model.head.score, model.head.size, model.head.offset):
        branch[0].conv.weight.div_(factor)
    return factor


def odtrack_from(folder: str | Path) -> ODTrackForTracking:
    """An ODTrack with the sizes and all weights of the OSTrack in `folder`, and a new track token, see `level_head`.

    Raises:
        ValueError: `folder` holds another tracker.
    """
    base = trained_ostrack(folder)
    model = ODTrackForTracking(ODTrackConfig(**sizes_of(base) | {"fusion": ODTrackConfig.fusion}))
    new = model.load_state_dict(base.state_dict(), strict=False)
    assert not new.unexpected_keys and {name.rpartition(".")[0] for name in new.missing_keys} == {"model.track_token"}
    level_head(model)
    return model


def main(
    output: Path,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
    odtrack_from_: Annotated[
        Path | None, typer.Option("--odtrack-from", help="Folder of a trained OSTrack: makes an ODTrack of it.")
    ] = None,
    larger_from_: Annotated[
        Path | None, typer.Option("--larger-from", help="Folder of a trained OSTrack that goes on at --search-size.")
    ] = None,
    search_size: Annotated[int, typer.Option(help="Side of the search crop in pixels, with --larger-from.")] = 192,
    lorat: Annotated[bool, typer.Option("--lorat", help="Makes a LoRAT.")] = False,
) -> None:
    """Writes the start weights and the image processor to OUTPUT."""
    torch.manual_seed(seed)
    if odtrack_from_ is not None:
        model = odtrack_from(odtrack_from_)
    elif larger_from_ is not None:
        model = larger_from(larger_from_, search_size)
    else:
        model = tiny_lorat() if lorat else OSTrackForTracking(tiny_config())
        compare_contents(model)
    trained = odtrack_from_ or larger_from_
    processor = model.image_processor() if trained is None else TrackerImageProcessor.from_pretrained(trained)
    processor.template_size, processor.search_size = model.config.template_size, model.config.search_size
    model.save_pretrained(output)
    processor.save_pretrained(output)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters in {output}")


if __name__ == "__main__":
    run_script(lambda: typer.run(main))
