"""An exported tracker run by ONNX Runtime, through the same session as any model."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mmtrackers.hub.folders import read_json

from .memory import QuarterReferences, SpreadTemplates, TemplatePolicy, ThirdReferences

GRAPHS = "onnx_config.json"
TEMPLATE_GRAPH, SEARCH_GRAPH = "template.onnx", "search.onnx"
POLICIES = {rule.__name__: rule for rule in (TemplatePolicy, SpreadTemplates, QuarterReferences, ThirdReferences)}


class ExportedModel:
    """What a session asks of a model, answered by two graphs of static shape, which `mmtrackers export` wrote to a
    folder; several targets take turns.

    Raises:
        OSError: a file is missing or damaged.
        ValueError: ONNX Runtime is not installed, or the graphs are for other sizes than the folder says.
    """

    training = has_adapter = False
    is_packed = True
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, folder: str | Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError("an exported tracker is run by ONNX Runtime: pip install 'mmtrackers[onnx]'") from error
        folder = Path(folder)
        self.record = read_record(folder)
        self.config = SimpleNamespace(**self.record["config"])
        self.reads_template_mask = self.record["reads_template_mask"]
        policy = dict(self.record["template_policy"])
        self.template_policy = POLICIES[policy.pop("type")](**policy)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._graphs = {}
        for name in (TEMPLATE_GRAPH, SEARCH_GRAPH):
            try:
                self._graphs[name] = onnxruntime.InferenceSession(folder / name, options, ["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime has an error class for each of its states
                why = str(error).splitlines()[0]
                raise OSError(f"{folder / name} cannot be opened ({why}): export the tracker again") from error
        side = self.config.search_size
        found = self._graphs[SEARCH_GRAPH].get_inputs()[0].shape
        if found != [1, self.config.streams, 3, side, side]:
            raise ValueError(f"{folder / SEARCH_GRAPH} takes {found}, but {GRAPHS} says search_size {side}: they are "
                             "of two exports, export the tracker again")  # fmt: skip

    def window(self) -> torch.Tensor:
        """Nothing: the graph holds the window."""
        return torch.empty(0)

    def embed_template(self, template: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Template pixels `[B, 1, S, 3, h, w]`, and their foreground `[B, 1, g, g]`, to tokens `[S*B, Nz, C]`."""
        inputs = {"template": template} if mask is None else {"template": template, "template_mask": mask}
        rows = [{name: part[i : i + 1] for name, part in inputs.items()} for i in range(len(template))]
        return torch.stack([self._run(TEMPLATE_GRAPH, row)[0] for row in rows], 1).flatten(0, 1)

    def __call__(self, search: torch.Tensor, template: torch.Tensor, state: torch.Tensor | None = None) -> Any:
        """Search crops `[B, S, 3, H, W]`, template tokens and state, stream-major, to boxes, scores and state."""
        count = len(search)
        inputs = {"search": search[None], "template": template.unflatten(0, (-1, count))}
        if shape := self.record["state"]:
            state = search.new_zeros(shape[0] * count, *shape[1:]) if state is None else state
            inputs["state"] = state.unflatten(0, (-1, count))
        answers = [self._run(SEARCH_GRAPH, {name: part[:, i] for name, part in inputs.items()}) for i in range(count)]
        boxes, scores, *states = zip(*answers, strict=True)
        after = torch.stack(states[0], 1).flatten(0, 1) if states else None
        return SimpleNamespace(boxes=torch.cat(boxes), scores=torch.cat(scores), state=after)

    def decode(self, output: Any, window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes cxcywh `[B, 4]` and scores `[B]`, which the graph has decoded."""
        return output.boxes, output.scores

    def _run(self, name: str, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        feed = {key: np.ascontiguousarray(value.numpy()) for key, value in inputs.items()}
        return [torch.from_numpy(array) for array in self._graphs[name].run(None, feed)]


def is_exported(repo: str | Path) -> bool:
    """Whether a tracker is a folder that `mmtrackers export` wrote."""
    return (Path(repo) / GRAPHS).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """What an exported folder says of itself; OSError or ValueError where that is not there, or damaged."""
    record = read_json(folder / GRAPHS)
    kinds = {"config": dict, "template_policy": dict, "reads_template_mask": bool, "state": list}
    wrong = [key for key, kind in kinds.items() if not isinstance(record.get(key), kind)]
    if wrong or record["template_policy"].get("type") not in POLICIES:
        what = ", ".join(wrong) or "template_policy"
        raise ValueError(f"{folder / GRAPHS}: {what} is missing or damaged: export it again")
    return record


def policy_record(policy: TemplatePolicy) -> dict[str, Any]:
    """A template policy as `read_record` takes it."""
    return {"type": type(policy).__name__} | (dataclasses.asdict(policy) if dataclasses.is_dataclass(policy) else {})
