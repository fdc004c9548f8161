"""`model.pack()`: a tracker rewritten for inference, with the same numbers: fewer and larger products, merged, folded
and laid out for the CPU's matrix library. A module that can be rewritten offers `packed(dtype)`, which returns what
stands in its place."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmtrackers.hub.adapters import ModulesToSaveWrapper, copy_of_modules, merged
from mmtrackers.hub.folders import first_line

# what torch answers where it has no such operator, or none for this type or processor
REFUSALS = (RuntimeError, AttributeError, NotImplementedError, TypeError)


@cache
def warn_of_plain_maps(why: str) -> None:
    """Says once that oneDNN's operators, which are internal to torch, are not there."""
    warnings.warn(
        f"torch {torch.__version__} does not lay weights out for this processor ({why}): packed models are slower "
        "here than they could be, with the same numbers.",
        stacklevel=2,
    )


@dataclass(frozen=True)
class LinearMap:
    """What a linear map computes with its active adapters: `W x + b` (`[out, in]`, `[out]` or None), and perhaps a
    mixture of experts of rank `r` beside it, its scale in `up` and its router in float32."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None
    router: Tensor | None = None
    up: Tensor | None = None
    r: int = 0

    @classmethod
    def of(cls, layer: nn.Module) -> "LinearMap":
        """Reads a linear map, or a tuner's layer round one, which may tell by `linear_map()` what it cannot merge."""
        if hasattr(layer, "linear_map"):
            return layer.linear_map()
        plain = merged(layer)
        return cls(plain.weight.detach(), None if plain.bias is None else plain.bias.detach())

    def scaled(self, factor: Tensor | float) -> "LinearMap":
        """The map whose outputs are `factor` times this one's: a number, or one for each output."""
        rows = factor[:, None] if isinstance(factor, Tensor) else factor
        bias, up = (None if part is None else part * f for part, f in ((self.bias, factor), (self.up, rows)))
        return replace(self, weight=self.weight * rows, bias=bias, up=up)


class PackedLinear(nn.Module):
    """A linear map with its weight laid out for oneDNN, an optional GELU behind it, or a residual added to it; plain
    where oneDNN's operators, which are internal to torch, are not there or refuse."""

    def __init__(self, weight: Tensor, bias: Tensor | None, gelu: bool = False):
        super().__init__()
        self.gelu = gelu
        self.register_buffer("weight", weight.contiguous(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.contiguous(), persistent=False)
        self.prepacked: Tensor | None = None
        try:
            if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
                prepacked = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)
                probe = torch.zeros(1, weight.shape[1], dtype=weight.dtype)
                torch.ops.mkldnn._linear_pointwise(probe, prepacked, self.bias, "none", [], "")
                torch.ops.mkldnn._linear_pointwise.binary(probe, probe @ self.weight.T, prepacked, self.bias, "add")
                self.prepacked, self.weight = prepacked, None
        except REFUSALS as error:
            warn_of_plain_maps(first_line(error))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.prepacked is None:
            y = F.linear(x, self.weight, self.bias)
            y = F.gelu(y) if self.gelu else y
            return y if residual is None else y + residual
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.prepacked, self.bias, "add")
        activation = ("gelu", [], "none") if self.gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x, self.prepacked, self.bias, *activation)


def gated(gates: Tensor, hidden: Tensor, r: int, width: int) -> Tensor:
    """The experts' inputs side by side: gates `[..., E]` times `D x` `[..., r]` (or `[..., E * r]`) to `[..., width]`;
    an expert beyond the gates has weight one."""
    if width > gates.shape[-1] * r:
        gates = F.pad(gates, (0, 1), value=1.0)
    return (gates.to(hidden.dtype).unsqueeze(-1) * hidden.unflatten(-1, (-1, r))).flatten(-2)


class PackedMixtures(nn.Module):
    """Linear maps of one input, each with a mixture of experts beside it, for inference.

    One product gives the router's logits and the down-projections of all maps (two, where these are not in float32 as
    the routers are); then `[W | U]` multiplies each map's input and its experts' gated inputs side by side.
    """

    def __init__(self, maps: Sequence[LinearMap], gelu: bool = False):
        super().__init__()
        self.count, self.r = len(maps), maps[0].r
        self.width = maps[0].up.shape[1]
        routers, downs = torch.cat([m.router for m in maps]), torch.cat([m.down for m in maps])
        self.routed = len(routers)
        self.router = None if downs.dtype == routers.dtype else PackedLinear(routers, None)
        self.first = PackedLinear(torch.cat([routers, downs]) if self.router is None else downs, None)
        self.second = nn.ModuleList(PackedLinear(torch.cat([m.weight, m.up], 1), m.bias, gelu) for m in maps)

    def each(self, x: Tensor) -> list[Tensor]:
        """The answers of all maps, whose inputs follow each other in one memory: `x` is copied once."""
        wide, width = self._wide(x), x.shape[-1]
        joined = torch.cat([x, wide[..., 0, :]], -1)
        answers = [self.second[0](joined)]
        for index in range(1, self.count):
            joined[..., width:] = wide[..., index, :]
            answers.append(self.second[index](joined))
        return answers

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The answer of the only map, and `residual` added to it."""
        return self.second[0](torch.cat([x, self._wide(x)[..., 0, :]], -1), residual)

    def _wide(self, x: Tensor) -> Tensor:
        if self.router is None:
            logits, hidden = self.first(x).tensor_split((self.routed,), -1)
        else:
            logits, hidden = self.router(x.float()), self.first(x)
        gates = logits.unflatten(-1, (self.count, -1)).softmax(-1)
        return gated(gates, hidden.unflatten(-1, (self.count, -1)), self.r, self.width)


def packed_map(linear: LinearMap, gelu: bool = False) -> PackedLinear | PackedMixtures:
    """A linear map for inference, with a GELU behind it where asked for."""
    return PackedLinear(linear.weight, linear.bias, gelu) if linear.up is None else PackedMixtures([linear], gelu)


class PackedMaps(nn.Module):
    """Linear maps of one input and of one width, for inference: one product where no map has experts."""

    def __init__(self, maps: Sequence[LinearMap]):
        super().__init__()
        self.count = len(maps)
        shapes = {None if m.up is None else (m.up.shape, m.router.shape, m.down.shape) for m in maps}
        if len(shapes) > 1:
            self.maps = nn.ModuleList(packed_map(m) for m in maps)
        elif shapes != {None}:
            self.maps = PackedMixtures(maps)
        else:
            biases = [m.bias for m in maps if m.bias is not None]
            self.maps = PackedLinear(torch.cat([m.weight for m in maps]), torch.cat(biases) if biases else None)

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        if isinstance(self.maps, PackedLinear):
            return self.maps(x).chunk(self.count, -1)
        return self.maps.each(x) if isinstance(self.maps, PackedMixtures) else [linear(x) for linear in self.maps]


class PackedConv(nn.Module):
    """A convolution laid out for oneDNN, perhaps with a ReLU behind it; plain where `PackedLinear` is. The layout is
    made for a picture's size when the first one comes: oneDNN's choice without it may be several times as slow."""

    def __init__(self, conv: nn.Conv2d, relu: bool = True):
        super().__init__()
        self.conv, self.relu, self.is_laid_out = conv, relu, False
        self.shape = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self._layouts: dict[torch.Size, Tensor] = {}
        weight, bias = conv.weight.detach(), conv.bias
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)
        try:
            if weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and conv.padding_mode == "zeros":
                self.is_laid_out = True
                self(torch.zeros(1, conv.in_channels, *conv.kernel_size, dtype=weight.dtype))
        except REFUSALS as error:
            self.is_laid_out = False
            warn_of_plain_maps(first_line(error))
        self._layouts.clear()

    @classmethod
    def folded(cls, *stages: tuple[nn.Module, nn.Module]) -> "PackedConv":
        """Convolutions of one input, each with its batch norm folded in, as one with their outputs side by side."""
        convs = [fuse_conv_bn_eval(merged(conv), merged(norm)) for conv, norm in stages]
        for name in ("weight", "bias"):
            joined = torch.cat([getattr(conv, name).detach() for conv in convs])
            setattr(convs[0], name, nn.Parameter(joined, requires_grad=False))
        return cls(convs[0])

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_laid_out:
            y = self.conv(x)
            return torch.relu_(y) if self.relu else y
        x, activation = x.contiguous(memory_format=torch.channels_last), "relu" if self.relu else "none"
        if (layout := self._layouts.get(x.shape[2:])) is None:
            weight = self.conv.weight.detach()
            layout = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.shape, list(x.shape))
            self._layouts[x.shape[2:]] = layout
        return torch.ops.mkldnn._convolution_pointwise(x, layout, self.bias, *self.shape, activation, [], "")


class PackedPatches(nn.Module):
    """A convolution over patches that lie side by side, as one product for inference."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.patch = conv.kernel_size
        self.product = PackedLinear(conv.weight.detach().flatten(1), None if conv.bias is None else conv.bias.detach())

    def forward(self, pixels: Tensor) -> Tensor:
        """`[B, 3, H, W]` to maps `[B, C, H / p, W / p]`."""
        cells = pixels.unflatten(3, (-1, self.patch[1])).unflatten(2, (-1, self.patch[0])).permute(0, 2, 4, 1, 3, 5)
        return self.product(cells.flatten(3)).permute(0, 3, 1, 2)


def packed_patches(patch: nn.Module) -> nn.Module:
    """A patch embedding for inference, where it is one convolution."""
    is_plain = isinstance(patch, nn.Conv2d) and patch.stride == patch.kernel_size and patch.groups == 1
    return PackedPatches(patch) if is_plain and patch.padding == (0, 0) else patch


def without_gaps(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> list[Tensor]:
    """q, k, v `[B, H, N, d]` in memories of their own, q scaled and N of k and v a multiple of 32: torch's products
    in bfloat16 are slow on rows with gaps, and its softmax on what is left over of 32."""
    query, spare = query if scaling == 1.0 else query * scaling, -key.shape[2] % 32
    return [query.contiguous(), *(F.pad(t, (0, 0, 0, spare)) if spare else t.contiguous() for t in (key, value))]


def softmax_(logits: Tensor, tokens: int) -> Tensor:
    """The softmax over the first `tokens` columns in the place of the logits, zeros in those beyond."""
    if logits.shape[-1] > tokens:
        logits[..., tokens:] = -math.inf
    return torch.softmax(logits, -1, out=logits)


def pack_model(model: nn.Module) -> None:
    """Rewrites a tracker, on its final device and in its final dtype, for inference, in place; outputs stay within
    1e-5 of the plain model's in float32. RuntimeError where it is packed already."""
    if model.is_packed:
        raise RuntimeError("This model is packed already.")
    model.eval()
    # on a copy that shares the weights, so that an error on the way leaves the model whole
    twin = copy_of_modules(model)
    _pack_children(twin, model.dtype)
    for name, child in twin.named_children():
        setattr(model, name, child)
    model.requires_grad_(False)
    model.is_packed = True


def _pack_children(module: nn.Module, dtype: torch.dtype) -> None:
    """Exchanges what offers `packed(dtype)` below a module, from the top down: a layer before what is in it."""
    for name, child in list(module.named_children()):
        new = merged(child).to(dtype) if isinstance(child, ModulesToSaveWrapper) else child
        new = new.packed(dtype) if hasattr(new, "packed") else new
        if new is not child:
            setattr(module, name, new)
        _pack_children(new, dtype)
