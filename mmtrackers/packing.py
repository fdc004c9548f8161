"""`model.pack()`: a tracker rewritten for inference, with the same numbers.

Low-rank maps are merged into their linear maps, queries, keys and values become one product, the attention scale moves
into the query weights, batch norms into their convolutions, and linear maps are laid out for the CPU's matrix library,
with GELU and residual sum fused. Where that library is missing (another device or build) plain linear maps remain.
"""

import copy

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .backbones.vit import ConvStem, ViTLayer, add_losses
from .heads.center import ConvNormAct
from .modeling import ResidualJunction, TokenLayout, TrackerPreTrainedModel


def merged(layer: nn.Module) -> nn.Module:
    """The plain layer that computes what `layer` does with its active adapters; `layer` itself stays as it is."""
    if isinstance(layer, ModulesToSaveWrapper):
        active = [] if layer.disable_adapters else layer.active_adapters
        return layer.modules_to_save[active[0]] if active else layer.original_module
    if not isinstance(layer, BaseTunerLayer):
        return layer
    if layer.disable_adapters or layer.merged:
        return layer.get_base_layer()
    names = [name for name in layer.active_adapters if name in getattr(layer, layer.adapter_layer_names[0])]
    layer = copy.deepcopy(layer)
    if type(layer).merge is not BaseTunerLayer.merge:
        layer.merge(adapter_names=names)
        return layer.get_base_layer()
    base = layer.get_base_layer()
    for name in names:
        base.weight.data = (base.weight.float() + layer.get_delta_weight(name).float()).to(base.weight.dtype)
    return base


def dense_weight(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear map with its active adapters merged in."""
    linear = merged(linear)
    return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()


class PackedLinear(nn.Module):
    """A linear map with its weight laid out for oneDNN, an optional GELU behind it, or a residual added to it.

    oneDNN's operators are internal to torch, so their absence or refusal is expected: then the plain map is used.
    """

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
        except (RuntimeError, AttributeError, NotImplementedError, TypeError):
            pass

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.prepacked is None:
            y = F.linear(x, self.weight, self.bias)
            y = F.gelu(y) if self.gelu else y
            return y if residual is None else y + residual
        if residual is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.prepacked, self.bias, "add")
        activation = ("gelu", [], "none") if self.gelu else ("none", [], "")
        return torch.ops.mkldnn._linear_pointwise(x, self.prepacked, self.bias, *activation)


def _joined(*maps: tuple[Tensor, Tensor | None]) -> PackedLinear:
    biases = [bias for _, bias in maps if bias is not None]
    return PackedLinear(torch.cat([weight for weight, _ in maps]), torch.cat(biases) if biases else None)


class PackedLayer(nn.Module):
    """A `ViTLayer` for inference: the same seams, fewer and larger products."""

    def __init__(self, layer: ViTLayer, last: bool):
        super().__init__()
        attention = layer.attention
        self.head_dim, self.core = attention.head_dim, attention.core
        query, key, value = (dense_weight(m) for m in (attention.q_proj, attention.k_proj, attention.v_proj))
        query = tuple(None if part is None else part * attention.scaling for part in query)
        # the last layer asks for the queries of some rows only, so its queries are a product of their own
        self.q = PackedLinear(*query) if last else None
        self.kv = _joined(key, value) if last else _joined(query, key, value)
        self.o = PackedLinear(*dense_weight(attention.o_proj))
        self.fc1 = PackedLinear(*dense_weight(layer.mlp.fc1), gelu=True)
        self.fc2 = PackedLinear(*dense_weight(layer.mlp.fc2))
        self.norm1, self.norm2, self.elimination = layer.norm1, layer.norm2, layer.elimination
        self.attention_junction, self.mlp_junction = layer.attention_junction, layer.mlp_junction

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    @staticmethod
    def _add(
        junction: nn.Module, linear: PackedLinear, inner: Tensor, x: Tensor, h: Tensor, norm: nn.Module,
        layout: TokenLayout,
    ) -> tuple[Tensor, Tensor | None]:
        if type(junction) is ResidualJunction:
            return linear(inner, x), None
        return junction(x, h, linear(inner), norm, layout)

    def forward(
        self, x: Tensor, kept: Tensor | None, layout: TokenLayout, last: bool = False, keep_rate: float = 1.0, **kwargs
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, TokenLayout]:
        """As `ViTLayer.forward`."""
        h = self.norm1(x)
        if last:
            read = layout.drop_template(h)
            query, (key, value) = self._heads(self.q(read)), map(self._heads, self.kv(h).chunk(2, -1))
        else:
            query, key, value = map(self._heads, self.kv(h).chunk(3, -1))
        output, weights = self.core(query, key, value, 1.0, layout, **kwargs)
        if last:
            x, h, layout = layout.drop_template(x), read, layout.without_template()
        x, loss1 = self._add(self.attention_junction, self.o, output.flatten(2), x, h, self.norm1, layout)
        if self.elimination is not None and keep_rate < 1.0 and not last:
            x, kept, layout = self.elimination(x, kept, query, key, 1.0, layout, keep_rate)
        h = self.norm2(x)
        x, loss2 = self._add(self.mlp_junction, self.fc2, self.fc1(h), x, h, self.norm2, layout)
        return x, weights, kept, add_losses(loss1, loss2), layout


class FoldedConv(nn.Module):
    """Convolution with a batch norm folded in, and ReLU."""

    def __init__(self, conv: nn.Module, norm: nn.Module):
        super().__init__()
        self.conv = fuse_conv_bn_eval(merged(conv), merged(norm))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.conv(x))


def pack_model(model: TrackerPreTrainedModel) -> None:
    """Rewrites a tracker for inference, in place; outputs stay within 1e-5 of the plain model's in float32.

    Args:
        model (`TrackerPreTrainedModel`): on its final device and in its final dtype.

    Raises:
        RuntimeError: it is packed already.

    Example:
        >>> from mmtrackers import OSTrackConfig, OSTrackForTracking
        >>> model = OSTrackForTracking(OSTrackConfig(hidden_size=64, num_attention_heads=1, num_hidden_layers=2))
        >>> model.pack()
        >>> model.is_packed
        True
    """
    if model.is_packed:
        raise RuntimeError("This model is packed already.")
    model.eval().requires_grad_(False)
    trunk = model.model
    last = len(trunk.layers) - 1
    for index, layer in enumerate(trunk.layers):
        trunk.layers[index] = PackedLayer(layer, last=index == last)
    for module in list(model.modules()):
        if isinstance(module, ConvStem):
            module.stages = nn.ModuleList(FoldedConv(conv, norm) for conv, norm, _ in module.stages)
        for name, child in list(module.named_children()):
            if isinstance(child, ConvNormAct):
                setattr(module, name, FoldedConv(child.conv, child.norm))
    model.is_packed = True
