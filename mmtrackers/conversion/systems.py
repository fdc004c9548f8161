"""Official checkpoint files to folders of this package: read, renamed, checked, saved, read back and compared."""

from pathlib import Path
from typing import Any

from mmtrackers.hub.folders import check_finite
from mmtrackers.models.lorat.convert_lorat import convert_lorat
from mmtrackers.models.odtrack.convert_odtrack import convert_odtrack
from mmtrackers.models.ostrack.convert_ostrack import convert_ostrack
from mmtrackers.models.patrack.convert_patrack import convert_patrack
from mmtrackers.models.seatrack.convert_seatrack import SEATRACK_NAMES, convert_seatrack
from mmtrackers.models.spmtrack.convert_spmtrack import convert_spmtrack
from mmtrackers.processing.files import new_folder
from mmtrackers.processing.frames import MODALITIES

from .job import ConversionJob, ConversionReport, names_of
from .reader import load_official

SYSTEMS = {
    "lorat": convert_lorat,
    "ostrack": convert_ostrack,
    "odtrack": convert_odtrack,
    "patrack": convert_patrack,
    "seatrack": convert_seatrack,
    "spmtrack": convert_spmtrack,
}
ON_A_BASE = {"lorat", "patrack", "seatrack", "spmtrack"}
TWO_STREAMS = {"patrack", "seatrack"}


def convert_checkpoint(
    system: str, file: str | Path, out: str | Path, base: str | Path | None = None, modality: str | None = None,
    overwrite: bool = False, **overrides: Any,
) -> ConversionReport:
    """Converts an official checkpoint file into a folder that `AutoTracker` and `Tracker` load.

    An OSTrack or ODTrack file becomes a full model; a SEATrack or PATrack file an adapter folder, and without `base`
    also the base that the file holds, in `out/base`; a LoRAT or SPMTrack file an adapter folder on its DINOv2, or a
    full model where it is merged (LoRAT). The result is loaded back and compared with the file's numbers and, on one
    random input, with the model it was saved from.

    Args:
        system (`str`): "lorat", "ostrack", "odtrack", "patrack", "seatrack" or "spmtrack".
        file (`str` or `Path`): `.pth`, `.pth.tar` or `.safetensors`; nothing in it is run.
        out (`str` or `Path`): folder to make.
        base (`str` or `Path`, *optional*): folder or Hub id: seatrack, patrack: the OSTrack it was trained on, which
            is compared with the file's own; lorat, spmtrack: the plain DINOv2 that it stands on.
        modality (`str`, *optional*): seatrack, patrack: "thermal", "depth" or "event".
        overwrite (`bool`): write into `out` although it holds files already.
        overrides: what a file does not tell: fields of `OSTrackConfig`, such as `num_attention_heads` where heads are
            not 64 wide; lorat: `search_size` (224 or 378), and `lora_alpha` where it is not the rank; spmtrack:
            `alpha` where it is not 1.

    Raises:
        FileNotFoundError, FileExistsError: no such file; `out` is not an empty folder.
        ValueError: the file is not what it should be, or was trained on another base.
        RuntimeError: the saved result does not equal the file (then a new `out` is removed again).
    """
    if system not in SYSTEMS:
        raise ValueError(f"unknown system {system!r}; files of these can be converted: {', '.join(SYSTEMS)}")
    for name, given, taken in (("base", base, system in ON_A_BASE), ("modality", modality, system in TWO_STREAMS)):
        if given is not None and not taken:
            raise ValueError(f"{name} has no meaning for {system!r} files: leave it out")
    if system in TWO_STREAMS and modality not in MODALITIES[1:]:
        raise ValueError(
            f"modality is {modality!r}: a {system} file does not say what its second stream was, so say it: "
            f"{', '.join(MODALITIES[1:])}"
        )
    out = Path(out)
    facts: list[str] = []
    with new_folder(out, overwrite):
        net = load_official(file, facts=facts)
        check_finite(net, str(file))
        if system == "ostrack" and (adapter := [name for name in net if names_of(name, SEATRACK_NAMES)]):
            raise ValueError(f"{file} holds {len(adapter)} adapter tensors of SEATrack: convert it as 'seatrack'")
        report = SYSTEMS[system](ConversionJob(net, Path(file), out, base, modality, overrides))
    report.facts[:0] = facts
    return report
