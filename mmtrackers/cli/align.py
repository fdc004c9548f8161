"""`mmtrackers align`: find the matrix that lays a second camera's pictures on RGB's."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option


def align(
    rgb: Annotated[Path, Argument(help="An RGB picture, or a folder of them.")],
    other: Annotated[Path, Argument(help="The other camera's picture of the same moment, or the folder.")],
    out: Annotated[Path, Argument(help="Text file to write; a picture to judge it by lies beside it.")],
    modality: Annotated[str, Option(help="What the other camera sees: thermal, depth or event.")] = "thermal",
    model: Annotated[str | None, Option(help="affine or homography; default: affine up to 7 points.")] = None,
    points: Annotated[Path | None, Option(help="Text file of points, `x y  x y` a line, RGB first.")] = None,
    pairs: Annotated[int, Option(min=1, help="Of folders, how many pairs to look at, spread evenly.")] = 5,
) -> None:
    """Find how a second camera's pictures lie on RGB's; `mmtrackers track --align OUT` uses it.

    By the edges that both see, or by points. Look at the picture OUT.jpg: RGB's edges in cyan, before and after.
    """
    import cv2

    from mmtrackers.data.images import read_image
    from mmtrackers.processing.alignment import write_alignment
    from mmtrackers.processing.frames import to_picture
    from mmtrackers.processing.registration import matrix_from_points, overlay, read_points, register
    from mmtrackers.tracking.sources import paired_files

    picture = out.with_suffix(".jpg")
    if out == picture:
        raise ValueError(f"{out} is where the picture would lie: name a text file, such as {out.with_suffix('.txt')}")
    if there := next((path for path in (out, picture) if path.exists()), None):
        raise ValueError(f"{there} exists: remove it, or name another file")
    if modality not in ("thermal", "depth", "event"):
        raise ValueError(f"--modality {modality!r}: expected thermal, depth or event")
    files = paired_files(rgb, other, modality)
    step = max(1, len(files) // pairs)
    chosen = files[step // 2 :: step][:pairs]
    pictures = [(read_image(a), to_picture(read_image(b, modality), modality)) for a, b in chosen]
    if points is not None:
        matrix, residual = matrix_from_points(read_points(points), model)
        typer.echo(f"the points lie {residual:.1f} pixels from where the matrix puts them (median)")
    else:
        found = register(pictures, model or "affine", modality)
        matrix = found.matrix
        typer.echo(f"the edges of {len(chosen)} pairs agree by {found.after:.2f}, without it by {found.before:.2f}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_alignment(out, matrix)
    if not cv2.imwrite(str(picture), cv2.cvtColor(overlay(*pictures[0], matrix, modality), cv2.COLOR_RGB2BGR)):
        raise OSError(f"cannot write {picture}; the matrix is in {out}")
    typer.echo(f"written: {out}, {picture}")
