"""`mmtrackers export`: a tracker as ONNX graphs."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .options import BaseModel, Model


def export(
    model: Model,
    out: Annotated[Path, Argument(help="New folder for the graphs.")],
    int8: Annotated[bool, Option("--int8", help="8-bit weights: faster, less exact.")] = False,
    opset: Annotated[int, Option(min=18, help="Version of the ONNX operators.")] = 20,
    base_model: BaseModel = None,
) -> None:
    """Write a tracker as ONNX graphs, for ONNX Runtime and devices without torch."""
    from mmtrackers.conversion.onnx import export_onnx
    from mmtrackers.tracking.tracker import Tracker

    folder = export_onnx(Tracker.from_pretrained(model, base_model=base_model), out, int8, opset)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    typer.echo(f"wrote {folder} ({size:.1f} MB); track with it: mmtrackers track VIDEO --model {folder}")
