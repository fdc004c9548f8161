"""A tracker without a network: it boxes the bright red patch in its search crop. For tests of loops and files."""

from types import SimpleNamespace

import numpy as np
import torch

from mmtrackers import TrackerImageProcessor
from mmtrackers.processing.image_processing import hann_window
from mmtrackers.tracking.memory import TemplatePolicy

SIZE = (120, 160)


class RedPatchModel:
    """The interface of a tracker model; `score` is what it claims, `calls` counts what it was asked."""

    training = False
    device = torch.device("cpu")
    dtype = torch.float32
    template_policy = TemplatePolicy()
    reads_template_mask = False

    def __init__(self, streams: int = 1, modality: str = "rgb", score: float = 0.8):
        self.config = SimpleNamespace(
            streams=streams, modality=modality, search_grid=8, template_size=32, search_size=64, patch_size=8
        )
        self.score, self.embeddings, self.batches, self.states = score, 0, [], []

    def window(self) -> torch.Tensor:
        return torch.from_numpy(hann_window(8))

    def embed_template(self, template: torch.Tensor) -> torch.Tensor:
        self.embeddings += 1
        self.template = template
        return template.new_zeros(self.config.streams * len(template), 16, 4)

    def __call__(self, search: torch.Tensor, template: torch.Tensor, state: object = None) -> SimpleNamespace:
        assert torch.is_inference_mode_enabled()
        assert template.shape[0] == self.config.streams * len(search)
        self.batches.append(tuple(search.shape))
        self.states.append(state)
        self.search = search
        return SimpleNamespace(search=search, state=len(self.states))

    def decode(self, output: SimpleNamespace, window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert window.shape == (8, 8)
        boxes = []
        for red, green in output.search[:, 0, :2].float():
            ys, xs = torch.nonzero((red > 1.2) & (green < 0), as_tuple=True)
            if len(ys) == 0:
                boxes.append([0.5, 0.5, 0.25, 0.25])
                continue
            x1, x2, y1, y2 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
            boxes.append([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
            boxes[-1] = [float(v) / output.search.shape[-1] for v in boxes[-1]]
        return torch.tensor(boxes), torch.full((len(boxes),), self.score)


def processor() -> TrackerImageProcessor:
    return TrackerImageProcessor(template_size=32, search_size=64)


def frame(*boxes: tuple[int, int, int, int], size: tuple[int, int] = SIZE, modality: str | None = None) -> dict:
    """Grey picture with red patches at `boxes` (x, y, w, h); with a second stream if `modality` is given."""
    image = np.full((*size, 3), 100, np.uint8)
    for x, y, w, h in boxes:
        image[y : y + h, x : x + w] = (255, 0, 0)
    if modality is None:
        return {"rgb": image}
    kind = np.uint16 if modality == "depth" else np.uint8
    return {"rgb": image, modality: np.arange(size[0] * size[1]).reshape(size).astype(kind)}


def moving(count: int, size: tuple[int, int] = SIZE) -> tuple[list[dict], np.ndarray]:
    """Frames in which one patch moves, and its boxes."""
    boxes = [(40 + 2 * i, 50 + i, 24, 20) for i in range(count)]
    return [frame(box, size=size) for box in boxes], np.array(boxes, dtype=np.float64)
