"""PATrack's adapters rewritten for inference: fewer operations, in the tokens' precision, the same numbers."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrackers.modeling.packing import PackedLinear, softmax_, without_gaps
from mmtrackers.modeling.seams import TokenLayout

from .adapters import HeadAdapter, ModalityDependentAdapter, ModalityEntangledAdapter


def _packed(linear: nn.Linear, dtype: torch.dtype) -> PackedLinear:
    bias = None if linear.bias is None else linear.bias.detach().to(dtype)
    return PackedLinear(linear.weight.detach().to(dtype), bias)


class PackedDependentAdapter(ModalityDependentAdapter):
    """An MDA whose four maps of high frequencies are one convolution, and whose residual is in its last kernel."""

    def __init__(self, adapter: ModalityDependentAdapter, dtype: torch.dtype):
        nn.Module.__init__(self)
        self.quarter, self.source, half = adapter.quarter, adapter.source, 2 * adapter.quarter
        self.down, self.up = _packed(adapter.down, dtype), _packed(adapter.up, dtype)
        pooled, bias = adapter.high_pooled.weight.detach(), adapter.high_pooled.bias.detach()
        high = torch.zeros(2 * half, half, 3, 3, dtype=pooled.dtype, device=pooled.device)
        high[:half, : self.quarter] = (adapter.high_depthwise.weight * adapter.high_expand.weight).detach()
        high[half:, self.quarter :, 1, 1] = pooled.flatten(1)
        mix = adapter.mix.weight.detach().clone()
        mix[:, :, 1, 1] += 1
        tensors = {"high": high, "high_bias": torch.cat([torch.zeros_like(bias), bias]), "kernel": mix}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.to(dtype), persistent=False)

    def mixed(self, maps: Tensor) -> Tensor:
        convolved, pooled, low = maps.split([self.quarter, self.quarter, 2 * self.quarter], 1)
        high = torch.cat([convolved, F.max_pool2d(pooled, 3, stride=1, padding=1)], 1)
        high = F.gelu(F.conv2d(high, self.high, self.high_bias, padding=1))
        low = F.interpolate(F.avg_pool2d(low, 2), scale_factor=2.0, mode="nearest")
        return F.conv2d(torch.cat([high, low], 1), self.kernel, padding=1, groups=self.kernel.shape[0])

    def added(self, result: Tensor, x: Tensor, h: Tensor, norm: nn.Module, layout: TokenLayout) -> Tensor:
        """`result` and the adapter's answer."""
        return self.up(self.narrow(h, layout), result)


class PackedEntangledAdapter(ModalityEntangledAdapter):
    """A CEA in the tokens' precision."""

    def __init__(self, adapter: ModalityEntangledAdapter, dtype: torch.dtype):
        nn.Module.__init__(self)
        self.swap_outputs, self.norm = adapter.swap_outputs, copy.deepcopy(adapter.norm).to(dtype)
        self.down, self.guide, self.up = (_packed(m, dtype) for m in (adapter.down, adapter.guide, adapter.up))
        self.register_buffer("query_value", adapter.query_value.detach().to(dtype), persistent=False)

    def attend(self, query: Tensor, guide: Tensor, value: Tensor) -> Tensor:
        if query.dtype != torch.bfloat16 or query.device.type != "cpu":
            return super().attend(query, guide, value)
        cells = guide.shape[2]
        query, guide, value = without_gaps(query, guide, value, 1.0)
        return softmax_(query @ guide.mT, cells) @ value

    def added(self, result: Tensor, x: Tensor, h: Tensor, norm: nn.Module, layout: TokenLayout) -> Tensor:
        """`result` and the adapter's answer."""
        return result + norm(self.up(self.narrow(x, layout)))


class PackedJunction(nn.Module):
    """A residual junction and its adapter, whose last product adds its answer."""

    needs_all_rows = False

    def __init__(self, adapter: nn.Module, dtype: torch.dtype):
        super().__init__()
        entangled = isinstance(adapter, ModalityEntangledAdapter)
        self.adapter = (PackedEntangledAdapter if entangled else PackedDependentAdapter)(adapter, dtype)

    def adapted_sum(self, total: Tensor, x: Tensor, h: Tensor, norm: nn.Module, layout: TokenLayout) -> Tensor:
        """The adapter's answer added to the residual sum of a site with the input `x`, normed `h`."""
        start, stop = layout.template.start, layout.search.stop
        if (start, stop) == (0, x.shape[1]):
            return self.adapter.added(total, x, h, norm, layout)
        body = (part[:, start:stop].contiguous() for part in (total, x, h))
        added = self.adapter.added(*body, norm, layout)
        return torch.cat([total[:, :start], added, total[:, stop:]], 1)


class PackedHeadAdapter(nn.Module):
    """The head adapter as one linear map."""

    def __init__(self, adapter: HeadAdapter, dtype: torch.dtype):
        super().__init__()
        first, second, third = (copy.deepcopy(m).double() for m in (adapter.down, adapter.middle, adapter.up))
        weight = third.weight @ second.weight @ first.weight
        bias = third(second(first.bias))
        if adapter.residual:
            weight = weight + torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        self.map = PackedLinear(weight.detach().to(dtype), bias.detach().to(dtype))

    def forward(self, features: Tensor, layout: TokenLayout) -> Tensor:
        return self.map(features)
