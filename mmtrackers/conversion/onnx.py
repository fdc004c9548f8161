"""Exporting a tracker as ONNX graphs, for devices without torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmtrackers.processing.files import new_folder, write_json
from mmtrackers.tracking.exported import GRAPHS, SEARCH_GRAPH, TEMPLATE_GRAPH, policy_record

if TYPE_CHECKING:
    from mmtrackers.tracking.tracker import Tracker

OPSET = 20
LARGEST_INSIDE = 1_500_000_000  # bytes of weights that one ONNX file can hold, with room to spare
CONFIG_FIELDS = ("streams", "modality", "search_size", "template_size", "search_grid", "template_grid", "patch_size")

CARD = Path(__file__).with_name("onnx_card_template.md")


class TemplateGraph(nn.Module):
    """One template to its tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, template: Tensor, template_mask: Tensor | None = None) -> Tensor:
        return self.model.embed_template(template, template_mask)


class SearchGraph(nn.Module):
    """A search crop to its box and score, under the window of tracking."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("weights", model.window())

    def forward(self, search: Tensor, template: Tensor, state: Tensor | None = None) -> tuple[Tensor, ...]:
        output = self.model(search, template, state=state)
        boxes, scores = self.model.decode(output, self.weights)
        return (boxes, scores) if output.state is None else (boxes, scores, output.state)


def export_onnx(tracker: "Tracker", folder: str | Path, int8: bool = False, opset: int = OPSET) -> Path:
    """Writes a tracker as two ONNX graphs, with what is needed to run them; returns the folder.

    Args:
        tracker (`Tracker`): not packed, in float32 on the CPU; its active adapter goes into the graphs.
        folder (`str` or `Path`): new or empty (else OSError).
        int8 (`bool`): matrix products with weights of 8 bits, and what they multiply quantized as it comes.
        opset (`int`): version of the ONNX operators.

    Raises:
        ValueError: the tracker is packed, not in float32, or a package is missing, or cannot write this opset.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"exporting needs {error.name}: pip install 'mmtrackers[onnx]'") from error
    if tracker.model.is_packed or tracker.dtype != torch.float32 or tracker.device.type != "cpu":
        raise ValueError("only a plain float32 model on the CPU can be exported: load it without pack, dtype, device")
    with new_folder(folder) as folder:
        _write(tracker, folder, int8, opset)
    return folder


def _write(tracker: "Tracker", folder: Path, int8: bool, opset: int) -> None:
    model = tracker.model_for().eval().requires_grad_(False)
    template, state = _export_graphs(model, folder, opset)
    if int8:
        quantize(folder)
    record = {
        "system": type(model).__name__,
        "config": {name: getattr(model.config, name) for name in CONFIG_FIELDS},
        "template_policy": policy_record(model.template_policy),
        "reads_template_mask": model.reads_template_mask,
        "template_tokens": list(template.shape),
        "state": [] if state is None else [tracker.streams, *state.shape[1:]],
        "opset": opset,
        "int8": int8,
    }
    write_json(folder / GRAPHS, record)
    tracker.image_processor.save_pretrained(folder)
    text = CARD.read_text(encoding="utf-8").format(
        name=Path(str(model.config.name_or_path)).name or type(model).__name__, system=type(model).__name__,
        modality=tracker.modality, opset=opset, graphs=GRAPHS, quantized=", matrix products in int8" if int8 else "",
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")


@torch.no_grad()
def _export_graphs(model: nn.Module, folder: Path, opset: int) -> tuple[Tensor, Tensor | None]:
    """Writes both graphs; returns the tokens of the templates and the state, of which they know the shapes."""
    config = model.config
    template = torch.rand(1, 1, config.streams, 3, config.template_size, config.template_size)
    inputs: dict[str, Any] = {"template": template}
    if model.reads_template_mask:
        inputs["template_mask"] = torch.ones(1, 1, config.template_grid, config.template_grid, dtype=torch.long)
    _export(TemplateGraph(model), inputs, ["tokens"], folder / TEMPLATE_GRAPH, opset)
    tokens = model.embed_template(*inputs.values())
    counts = {len(model.template_policy.indices(frame)) for frame in range(1, 100)}
    search = torch.rand(1, config.streams, 3, config.search_size, config.search_size)
    inputs, names = {"search": search, "template": torch.cat([tokens] * max(counts), 1)}, ["boxes", "scores"]
    state = model(**inputs).state
    if state is not None:
        inputs["state"], names = torch.zeros_like(state), [*names, "state_after"]
    # a video's first frames have fewer templates, where there are several
    free = {"template": {1: torch.export.Dim("tokens", min=1)}} if len(counts) > 1 else {}
    _export(SearchGraph(model), inputs, names, folder / SEARCH_GRAPH, opset, free)
    return inputs["template"], state


def _export(
    graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path, opset: int,
    free: dict[str, Any] | None = None,
) -> None:
    import onnx

    size = sum(tensor.nbytes for tensor in (*graph.parameters(), *graph.buffers()))
    torch.onnx.export(
        graph.eval(), (), path, kwargs=inputs, input_names=list(inputs), output_names=outputs, opset_version=opset,
        dynamic_shapes=dict.fromkeys(inputs) | free if free else None,
        dynamo=True, external_data=size > LARGEST_INSIDE, verbose=False,
    )  # fmt: skip
    made = next(one.version for one in onnx.load(path, load_external_data=False).opset_import if not one.domain)
    if made != opset:
        raise ValueError(f"opset {opset} cannot be written by this torch and onnx (they made {made}): use {OPSET}")


def quantize(folder: Path) -> None:
    """The search graph's matrix products in int8, in place; the template's are run once per video."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = folder / SEARCH_GRAPH
    graph = onnx.load(path, load_external_data=False).graph
    # ONNX Runtime refuses int8 weights of three axes, which experts have
    deep = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 2}
    left = [node.name for node in graph.node if node.op_type == "MatMul" and deep & set(node.input)]
    quantize_dynamic(
        path, path, op_types_to_quantize=["MatMul", "Gemm"], nodes_to_exclude=left, weight_type=QuantType.QInt8,
        per_channel=True,
    )  # fmt: skip
