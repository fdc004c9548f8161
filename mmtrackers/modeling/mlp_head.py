"""MLP head of the LoRAT family: a score and a box for every search token, and their decoding."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .kept import kept
from .losses import cell_loss
from .packing import LinearMap, packed_map


def _mlp(width: int, outputs: int) -> nn.Sequential:
    maps = nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs)
    return nn.Sequential(*maps)


@kept
def _cells(grid: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cells' centers as `x, y, x, y` `[4, g, g]`, and the signs of left, top, right and bottom `[4, 1, 1]`."""
    centers = (torch.arange(grid, device=device) + 0.5) / grid
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    signs = torch.tensor([-1.0, -1.0, 1.0, 1.0], device=device)
    return torch.stack([x, y, x, y]), signs.view(4, 1, 1)


class MlpHead(nn.Module):
    """Two MLPs of three linear maps over search tokens C wide, `grid` a side (LoRAT, arXiv 2403.05231).

    A box is the cell's center moved outwards by four sigmoids, fractions of the whole crop.
    """

    takes_any_dtype = True

    def __init__(self, width: int, grid: int, window_penalty: float = 0.45):
        super().__init__()
        self.grid, self.window_penalty = grid, window_penalty
        self.score, self.box = _mlp(width, 1), _mlp(width, 4)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Features `[B, g * g, C]` to the maps of `TrackingOutput`, float32; boxes are not clipped to the crop."""
        # trained with an adapter it may be in float32 behind a trunk that is not
        features = features.to(next(self.score.parameters(), features).dtype)
        logits, sides = (
            branch(features).float().transpose(1, 2).unflatten(2, (self.grid, self.grid))
            for branch in (self.score, self.box)
        )
        boxes = torch.addcmul(*_cells(self.grid, features.device), sides.sigmoid())
        return {"score_map": logits.sigmoid(), "score_logits": logits, "box_map": boxes}

    def decode(self, maps: Mapping[str, Tensor], window: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Boxes cxcywh `[B, 4]` (fractions of the crop) of the best cells, and these cells' own scores `[B]`.

        Under a window `[g, g]` the best cell has the largest `(1 - window_penalty) * score + window_penalty * window`.
        """
        response = score_map = maps["score_map"]
        if window is not None:
            response = torch.lerp(score_map, window.to(score_map.dtype), self.window_penalty)
        cell = response.flatten(1).argmax(1, keepdim=True)
        scores = score_map.flatten(1).gather(1, cell).squeeze(1)
        corners = maps["box_map"].flatten(2).gather(2, cell.unsqueeze(1).expand(-1, 4, 1)).squeeze(2)
        first, second = corners.chunk(2, 1)
        return torch.cat([torch.lerp(first, second, 0.5), second - first], 1), scores

    def loss(
        self, maps: Mapping[str, Tensor], boxes_cxcywh: Tensor, labels_xywh: Tensor, box_weight: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `cell_loss`, which reads every cell's box and not the best ones'."""
        return cell_loss(maps["score_logits"], maps["box_map"], labels_xywh, box_weight)

    def packed(self, dtype: torch.dtype) -> "MlpHead":
        """This head with its maps for inference, each with the GELU behind it."""
        for name in ("score", "box"):
            maps = getattr(self, name)[::2]
            setattr(self, name, nn.Sequential(*(packed_map(LinearMap.of(m), gelu=m is not maps[-1]) for m in maps)))
        return self
