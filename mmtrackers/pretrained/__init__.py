"""What comes with the package: a small tracker, adapters for it, and a sample clip."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SAMPLE_CLIP = FOLDER / "clip" / "pedestrians.mp4"


def default_checkpoint(modality: str = "rgb") -> Path:
    """The folder of the checkpoint that comes with the package.

    Args:
        modality (`str`): "rgb" for the tracker, "thermal", "depth" or "event" for its adapter with that second stream.

    Returns:
        `Path`: for `Tracker.from_pretrained`, `AutoTracker.from_pretrained` and `add_adapter`.

    Raises:
        ValueError: none is there for this modality.

    Example:
        >>> default_checkpoint("thermal").name
        'seatrack-tiny-thermal'
    """
    folder = FOLDER / ("ostrack-tiny" if modality == "rgb" else f"seatrack-tiny-{modality}")
    if not folder.is_dir():
        known = ["rgb", *sorted(path.name.removeprefix("seatrack-tiny-") for path in FOLDER.glob("seatrack-tiny-*"))]
        raise ValueError(f"no checkpoint for {modality!r} comes with the package, only for {', '.join(known)}")
    return folder


def located(repo: str) -> str:
    """The folder of a checkpoint that comes with the package, if this is its bare name; else the name as it is.

    Example:
        >>> located("org/seatrack-thermal")
        'org/seatrack-thermal'
        >>> Path(located("ostrack-tiny")).name
        'ostrack-tiny'
    """
    own = FOLDER / repo
    is_own = "/" not in repo and not Path(repo).exists() and any(own.glob("*model.safetensors"))
    return str(own) if is_own else repo
