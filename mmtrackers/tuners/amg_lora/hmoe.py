"""HMoE: SEATrack's mixture of experts over the tokens of both streams."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrackers.modeling.kept import kept
from mmtrackers.modeling.packing import PackedLinear
from mmtrackers.modeling.seams import TokenLayout


class LowRank(nn.Module):
    """`(x A + a) B + b`, for one map or, side by side, for one map per expert; without an activation."""

    def __init__(self, in_features: int, rank: int, out_features: int, experts: int | None = None):
        super().__init__()
        lead = () if experts is None else (experts,)
        self.a = nn.Parameter(torch.empty(*lead, in_features, rank))
        self.b = nn.Parameter(torch.empty(*lead, rank, out_features))
        self.bias_a = nn.Parameter(torch.empty(*lead, rank))
        self.bias_b = nn.Parameter(torch.empty(*lead, out_features))
        self.first: nn.Module | None = None  # the laid out first map of a packed one
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-normal with gain sqrt 2; a single map's biases uniform within 1 / sqrt of its input width."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter, gain=math.sqrt(2))
            else:
                nn.init.uniform_(parameter, -1 / math.sqrt(self.a.shape[0]), 1 / math.sqrt(self.a.shape[0]))

    def packed(self, dtype: torch.dtype) -> "LowRank":
        """This one for inference: the first map of a single one laid out."""
        if self.a.ndim == 2:
            self.first = PackedLinear(self.a.detach().T, self.bias_a.detach())
        return self

    def hidden(self, x: Tensor) -> Tensor:
        """`x A + a` of a single map."""
        # contiguous: torch.matmul takes another kernel for a strided 3-D input when the parameter requires a gradient,
        # and a loaded (frozen) adapter would differ from the trained one in the last bits
        return F.linear(x.contiguous(), self.a.T, self.bias_a) if self.first is None else self.first(x)

    def forward(self, x: Tensor, dropout: float = 0.0) -> Tensor:
        """`[..., in]` to `[..., out]`; with experts `[B, E, n, in]` to `[B, E, n, out]`. `dropout` follows both
        maps."""
        if self.a.ndim == 2:
            inner = F.dropout(self.hidden(x), dropout, dropout > 0)
            return F.dropout(F.linear(inner, self.b.T, self.bias_b), dropout, dropout > 0)
        batch, experts, count, width = x.shape
        rows = x.transpose(0, 1).reshape(experts, batch * count, width)
        inner = F.dropout(torch.baddbmm(self.bias_a.unsqueeze(1), rows, self.a), dropout, dropout > 0)
        outer = F.dropout(torch.baddbmm(self.bias_b.unsqueeze(1), inner, self.b), dropout, dropout > 0)
        return outer.view(experts, batch, count, -1).transpose(0, 1)


class HMoE(nn.Module):
    """Soft mixture of experts over sub-tokens of both streams (SEATrack, equations 5-10 of arXiv 2604.12502).

    Template tokens of both streams mix with each other, and so do search tokens; prefix tokens pass unchanged. Every
    token is cut into `heads` sub-tokens; a softmax over sub-tokens feeds the experts, a softmax over experts brings
    their answers back. In training dropout follows each of the six low-rank maps; without it logits and experts'
    inputs follow from a rank-wide vector per token.
    """

    def __init__(self, dim: int, experts: int, heads: int, rank: int, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"The token width {dim} is no multiple of hmoe_heads={heads}.")
        self.experts_count, self.heads, self.dropout = experts, heads, dropout
        self.gate = nn.Parameter(torch.empty(dim // heads, experts * heads))
        self.dispatch_temperature = nn.Parameter(torch.ones(1))
        self.combine_temperature = nn.Parameter(torch.ones(1))
        self.norm = nn.LayerNorm(dim)
        self.input_proj = LowRank(dim, rank, dim)
        self.experts = LowRank(dim // heads, rank, dim // heads, experts)
        self.output_proj = LowRank(dim, rank, dim)
        nn.init.normal_(self.gate, std=math.sqrt(heads / dim))

    def _factored(self, hidden: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits `[B, n, h, E*h]` and the experts' inputs `[B, G*E, h, dim/h]` from the vectors `[B, n, r]`."""
        # `[heads, rank + 1, dim / heads]`, which makes sub-tokens out of `[t, 1]`
        basis, ones = torch.cat([self.input_proj.b, self.input_proj.bias_b[None]]), F.pad(hidden, (0, 1), value=1.0)
        basis = basis.view(basis.shape[0], self.heads, -1).transpose(0, 1)
        # two-dimensional for the same reason as in `LowRank.hidden`
        columns = (basis.flatten(0, 1) @ self.gate).unflatten(0, (self.heads, -1)).permute(1, 0, 2).flatten(1)
        logits = (ones @ columns).unflatten(2, (self.heads, -1))
        dispatch = self._dispatch(logits, group)
        batch, tokens = hidden.shape[:2]
        gathered = dispatch.reshape(batch, tokens, -1).transpose(1, 2) @ ones
        gathered = gathered.view(batch, self.heads, -1, ones.shape[2]).transpose(1, 2).flatten(2)
        return logits, (gathered @ basis.flatten(0, 1)).view(batch, -1, self.heads, basis.shape[2])

    def _plain(self, hidden: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same with the sub-tokens written out, for dropout between them."""
        p = self.dropout
        tokens = F.linear(F.dropout(hidden, p), self.input_proj.b.T, self.input_proj.bias_b)
        sub = F.dropout(tokens, p).view(*hidden.shape[:2], self.heads, -1)
        logits = sub @ self.gate
        dispatch = self._dispatch(logits, group).flatten(1, 2).flatten(2)
        mixed = dispatch.transpose(1, 2) @ sub.flatten(1, 2)
        return logits, mixed.view(hidden.shape[0], -1, self.heads, sub.shape[3])

    def _dispatch(self, logits: Tensor, group: Tensor | None) -> Tensor:
        """Softmax over the sub-tokens of each group: `[B, n, h, G, E*h]`."""
        scaled = (logits / self.dispatch_temperature).unsqueeze(3)
        if group is not None:
            scaled = scaled.masked_fill(~group[:, None, :, None], float("-inf"))
        return scaled.flatten(1, 2).softmax(1).view(scaled.shape)

    def forward(self, tokens: Tensor, group: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weights `[S, B, N, G*E]` and values `[B, G*E, C]` whose product is the answer to all streams' tokens
        `[S, B, N, C]`; `group`, bool `[S*N, G]`, says which group each belongs to, None that there is one."""
        streams, batch, count, _ = tokens.shape
        hidden = self.input_proj.hidden(self.norm(tokens)).transpose(0, 1).flatten(1, 2)
        dropout = self.dropout if self.training else 0.0
        logits, mixed = (self._plain if dropout else self._factored)(hidden, group)
        experts = self.experts_count
        answers = self.experts(mixed.unflatten(1, (-1, experts)).transpose(1, 2).flatten(2, 3), dropout)
        answers = answers.unflatten(2, (-1, self.heads)).transpose(1, 2).flatten(1, 2).flatten(2)
        answers = self.output_proj(answers, dropout)
        routing = logits.unflatten(3, (experts, self.heads)).sum((2, 4))
        combine = (routing / self.combine_temperature).softmax(2)
        if group is not None:
            combine = (combine.unsqueeze(2) * group.unsqueeze(2)).flatten(2)
        return combine.view(batch, streams, count, -1).transpose(0, 1), answers


@kept
def token_groups(layout: TokenLayout, device: torch.device) -> Tensor | None:
    """Membership `[S*N, G]` of each token, stream-major, in the template group (where there are such tokens) and the
    search group; None where only search tokens are left. Prefix tokens are in neither."""
    if layout.prefix + layout.template_tokens == 0:
        return None
    place = torch.arange(layout.tokens, device=device)
    search = place >= layout.search.start
    template = [(place >= layout.prefix) & ~search] if layout.template_tokens else []
    return torch.stack([*template, search], 1).repeat(layout.streams, 1)
