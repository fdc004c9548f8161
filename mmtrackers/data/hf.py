"""Tracking sets as Hugging Face datasets: one row per sequence, frames as files that are not decoded."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .sequence import EncodedImage, Sequence
from .sets import SequenceSet, columns, row_of, sequence_of

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset


def features() -> "Features":
    """The columns of a tracking set (see `sets.columns`), with the encoded images `frames` and `frames_x`."""
    import pyarrow as pa
    from datasets import Features, Image, List

    images = List(Image(decode=False))
    return Features({**Features.from_arrow_schema(pa.schema(columns())), "frames": images, "frames_x": images})


def to_hf_dataset(sequences: Iterable[Sequence]) -> "Dataset":
    """Make a `datasets.Dataset` of sequences (of `open_dataset`), a row each with the columns of `features`;
    ValueError for none. The image files are copied, undecoded, into a temporary file that the dataset keeps;
    `save_to_disk` or `push_to_hub` make it last. Rows hold file names without folders.

    Example:
        >>> import numpy as np
        >>> frames = {"rgb": [EncodedImage("1.jpg", b"...")]}
        >>> sequence = Sequence("a", frames, np.array([[1.0, 2, 3, 4]]), np.array([True]))
        >>> from_hf_dataset(to_hf_dataset([sequence]))[0].boxes_xywh.tolist()
        [[1.0, 2.0, 3.0, 4.0]]
    """
    from datasets import Dataset

    rows = [_row(sequence) for sequence in sequences]
    if not rows:
        raise ValueError("there are no sequences to make a dataset of")
    named = Dataset.from_list(rows, features=features())
    # push_to_hub and to_parquet leave the files of undecoded columns out (datasets 5.2): they must be in before.
    return named.map(_with_files, features=named.features, writer_batch_size=1)


def _with_files(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose frames are names of files, with what is in them; the names without their folders."""
    for file in (*row["frames"], *(row["frames_x"] or ())):
        place = Path(file["path"])
        file |= {"path": place.name, "bytes": place.read_bytes() if file["bytes"] is None else file["bytes"]}
    return {"frames": row["frames"], "frames_x": row["frames_x"]}


def _row(sequence: Sequence) -> dict[str, Any]:
    row = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row_of(sequence).items()}
    row["frames_x"] = None
    for modality, files in sequence.frames.items():
        row["frames" if modality == "rgb" else "frames_x"] = [
            {"path": file.name, "bytes": file.read_bytes()} if isinstance(file, EncodedImage)
            else {"path": str(file), "bytes": None} for file in files
        ]  # fmt: skip
    return row


def from_hf_dataset(dataset: "Dataset | IterableDataset") -> "SequenceSet | SequenceStream":
    """The sequences of a Hugging Face dataset with the columns of `features`, of which `name`, `frames` and `boxes`
    must be there (else ValueError); without `present` it is whether a box has a size.

    Returns a [`SequenceSet`] over a dataset on disk, which makes a sequence when it is asked for and reads no other
    frames than those asked for, and a [`SequenceStream`] over a streamed one.

    Example:
        ```python
        sequences = from_hf_dataset(load_dataset("org/lasher", split="train", streaming=True))
        ```
    """
    from datasets import IterableDataset

    columns = dataset.column_names
    if columns is not None and (missing := [name for name in ("name", "frames", "boxes") if name not in columns]):
        raise ValueError(f"the dataset lacks the column {', '.join(missing)}; it has {', '.join(columns)}. Make it "
                         "with mmtrackers.data.to_hf_dataset")
    return SequenceStream(dataset) if isinstance(dataset, IterableDataset) else _HubRows(dataset)


def load_hf_dataset(source: str | Path, split: str | None = None) -> SequenceSet:
    """The sequences of a dataset on the Hub, or of a folder that `datasets` has written.

    A dataset that is on the Hub or in Parquet files is unpacked into the cache of `datasets` first, as a whole; what
    `save_to_disk` wrote is used where it lies. One that is too large for that is streamed: see [`StreamSamples`].

    Args:
        source (`str` or `Path`): the folder of `save_to_disk`, a folder of Parquet files as `push_to_hub` lays them
            out, or else the dataset's id on the Hub (org/name).
        split (`str`, *optional*): its part, such as "train"; may be left out where there is only one. A single dataset
            that was saved without a name of its own is taken for any split.

    Raises:
        ValueError: there is no such folder, dataset or split, or it lacks a column; names the source.

    Example:
        ```python
        to_hf_dataset(open_dataset("LasHeR", dataset="lasher", split="test")).save_to_disk("lasher-test")
        sequences = load_hf_dataset("lasher-test")
        ```
    """
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    # what save_to_disk leaves beside one dataset, and beside several splits
    saved = any((Path(source) / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        found = load_from_disk(str(source)) if saved else load_dataset(str(source), split=split)
    except (DatasetsError, OSError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"cannot load the dataset {source}: {reason}. Expected the id of a dataset on the Hub "
                         "(org/name), or a folder that save_to_disk wrote or that holds Parquet files") from error
    own = str(found.split) if saved and isinstance(found, Dataset) and found.split else split
    splits = found if isinstance(found, DatasetDict) else {own: found}
    if split is None and len(splits) == 1:
        [split] = splits
    if split not in splits:
        raise ValueError(f"the dataset {source} has the splits {', '.join(splits)}; got split={split!r}")
    try:
        return from_hf_dataset(splits[split])
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


class _HubRows(SequenceSet):
    """Sequences that lie in the rows of a dataset on disk."""

    def __init__(self, dataset: "Dataset") -> None:
        self._rows = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def column(self, name: str) -> list:
        if name not in self._rows.column_names:
            return super().column(name)
        return self._rows.select_columns([name])[:].column(name).to_pylist()

    def _item(self, i: int) -> Sequence:
        return sequence_of(self._rows[i])


class SequenceStream:
    """Sequences of a streamed dataset, in its order; each whole while it is at hand. To shuffle, shuffle the dataset
    (`dataset.shuffle(seed, buffer_size)`); several workers or processes share its files."""

    def __init__(self, dataset: "IterableDataset") -> None:
        self._rows = dataset.with_format("arrow")

    def set_epoch(self, epoch: int) -> None:
        """Another order per epoch, for a shuffled dataset."""
        self._rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[Sequence]:
        for table in self._rows:
            for k in range(table.num_rows):
                yield sequence_of(table.slice(k, 1))
