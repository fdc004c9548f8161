"""`mmtrackers push | convert | export`: the Hub, official checkpoints, ONNX graphs."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .options import BaseModel, Model


def push(
    folder: Annotated[Path, Argument(help="A saved tracker or adapter.")],
    repo: Annotated[str, Argument(help="Hub id: organization/name.")],
    private: Annotated[bool, Option("--private", help="Only you can see it.")] = False,
    base_model: Annotated[str | None, Option(help="Hub id of the base, where the adapter names a folder.")] = None,
    license: Annotated[str | None, Option(help="Of the weights, for the card, such as apache-2.0.")] = None,
) -> None:
    """Upload a saved tracker or adapter to the Hub."""
    from mmtrackers.hub import publish

    typer.echo(f"pushed to {publish.push(folder, repo, private=private, base_model=base_model, license=license)}")


FILE = "Official checkpoint, as published (.pth.tar, .pth) or .safetensors; org/name:FILE is one of the Hub."


def convert(
    system: Annotated[str, Argument(help="Whose file: lorat, ostrack, odtrack, patrack, seatrack, spmtrack.")],
    file: Annotated[str, Argument(help=FILE)],
    out: Annotated[Path, Argument(help="Folder to write.")],
    base: Annotated[str | None, Option(help="Folder or Hub id of the base that an adapter belongs to.")] = None,
    modality: Annotated[str | None, Option(help="thermal, depth or event.")] = None,
    search_size: Annotated[int | None, Option(help="Side of the search crop, where a file lacks it.")] = None,
    force: Annotated[bool, Option("--force", help="Write into a folder that is not empty.")] = False,
    verify: Annotated[Path | None, Option(help="The authors' raw boxes on the set in --root, to compare.")] = None,
    root: Annotated[Path | None, Option(help="Folder of the data set that --verify tracks through.")] = None,
    dataset: Annotated[str | None, Option(help="Which set that is, where its folders do not say.")] = None,
) -> None:
    """Turn an official checkpoint into a folder of this package; --verify compares its boxes with the authors'."""
    if (verify is None) != (root is None):
        raise ValueError("--verify FOLDER_OF_RAW_RESULTS and --root FOLDER_OF_THE_SET belong together")
    from mmtrackers.conversion.systems import convert_checkpoint

    told = {} if search_size is None else {"search_size": search_size}
    try:
        report = convert_checkpoint(system, _local(file), out, base=base, modality=modality, overwrite=force, **told)
    except FileExistsError as error:
        raise ValueError(f"{error}, or --force to write into it") from error
    typer.echo(str(report))
    if verify is not None and root is not None:
        from mmtrackers.data import open_dataset
        from mmtrackers.evaluation.verify import verify as compare
        from mmtrackers.tracking.tracker import Tracker

        tracker = Tracker.from_pretrained(str(out), base_model=base)
        modality = None if tracker.modality == "any" else tracker.modality
        sequences = open_dataset(root, modality=modality, dataset=dataset)
        for agreement in compare(tracker, sequences, verify):
            typer.echo(str(agreement))


def _local(file: str) -> Path:
    """The file itself, or the one of a Hub repository that `org/name:path` means, downloaded."""
    repo, colon, path = file.partition(":")
    if Path(file).exists() or not (colon and path and repo.count("/") == 1):
        return Path(file)
    from mmtrackers.hub.folders import download

    found = download(repo, {}, [path]) / path
    if not found.is_file():
        raise ValueError(f"repository {repo!r} of the Hub has no file {path}")
    return found


def export(
    model: Model,
    out: Annotated[Path, Argument(help="New folder for the graphs.")],
    int8: Annotated[bool, Option("--int8", help="8-bit weights: faster, less exact.")] = False,
    opset: Annotated[int, Option(min=18, help="Version of the ONNX operators.")] = 20,
    base_model: BaseModel = None,
) -> None:
    """Write a tracker as ONNX graphs, for ONNX Runtime and devices without torch."""
    from mmtrackers.conversion.onnx import export_onnx
    from mmtrackers.pretrained import located
    from mmtrackers.tracking.tracker import Tracker

    folder = export_onnx(Tracker.from_pretrained(located(model), base_model=base_model), out, int8, opset)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    typer.echo(f"wrote {folder} ({size:.1f} MB); track with it: mmtrackers track VIDEO --model {folder}")
