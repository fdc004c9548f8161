"""The token that a tracker carries from frame to frame (ODTrack's track token, SPMTrack's state token)."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init


class TrackToken(nn.Module):
    """The token that asks for the target: a learned start, what the frame before found, and a position."""

    def __init__(self, width: int):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, state: Tensor | None, rows: int) -> Tensor:
        """The carried token `[rows, 1, C]`, or None on the first frame, to the token of this frame `[rows, 1, C]`."""
        if state is None:
            return (self.start + self.position).expand(rows, -1, -1)
        if tuple(state.shape) != (rows, 1, self.start.shape[2]):
            raise ValueError(
                f"state has shape {list(state.shape)}, expected {[rows, 1, self.start.shape[2]]}: the `state` of the "
                "same targets' frame before, or None at the beginning of a video."
            )
        return self.start + state.to(self.start.dtype) + self.position


class TrackTokenMixin:
    """A trunk with a track token before its templates."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.track_token = TrackToken(config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TrackToken):
            init.trunc_normal_(module.start, std=self.config.initializer_range)
            init.trunc_normal_(module.position, std=self.config.initializer_range)

    def prefix_tokens(self, state: Tensor | None, rows: int) -> Tensor:
        """The track token, `[rows, 1, C]`."""
        return self.track_token(state, rows)
