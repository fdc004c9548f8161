"""Tracking sets as Hugging Face datasets: there and back, saved, pushed and streamed."""

import ast
from pathlib import Path

import cv2
import datasets
import numpy as np
import pytest
from local_hub import LocalHub
from test_data_sets import BOX, got10k, grow, rgbt, visevent

from mmtrackers.data import Sequence, SequenceSet, from_hf_dataset, load_hf_dataset, open_dataset, to_hf_dataset
from mmtrackers.data.sequence import EncodedImage, read_image

ARRAYS = ("boxes_xywh", "present", "annotated", "second_boxes_xywh")
PLAIN = ("name", "layout", "min_side", "dataset", "attributes")

REAL = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """RGB-T, RGB-E and RGB sequences, with pictures that can be read."""
    files = rgbt("a/testingset/b10") | visevent("b/test/c") | got10k("c/val/d")
    root = grow(tmp_path_factory.mktemp("sets"), files)
    rng = np.random.default_rng(0)
    for file in sorted(root.rglob("*.*")):
        if file.suffix in (".jpg", ".bmp"):
            assert cv2.imwrite(str(file), rng.integers(0, 256, (20, 30, 3), np.uint8))
    return root


@pytest.fixture(scope="module")
def sequences(root) -> list[Sequence]:
    asked = (("a", "lasher", "test"), ("b", "visevent", "test"), ("c", "got10k", "val"))
    return [open_dataset(root / folder, dataset=dataset, split=split)[0] for folder, dataset, split in asked]


def assert_same(one: Sequence, other: Sequence) -> None:
    assert [getattr(one, name) for name in PLAIN] == [getattr(other, name) for name in PLAIN]
    assert one.extras.keys() == other.extras.keys() and one.modality == other.modality
    arrays = [(getattr(one, name), getattr(other, name)) for name in ARRAYS]
    for a, b in [*arrays, *((one.extras[name], other.extras[name]) for name in one.extras)]:
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert len(one) == len(other)
    for index in (0, len(one) - 1):
        for modality, image in one.read(index).items():
            np.testing.assert_array_equal(image, other.read(index)[modality])


def test_there_and_back(sequences):
    back = from_hf_dataset(to_hf_dataset(sequences))
    assert isinstance(back, SequenceSet) and back.names == ["b10", "c", "d"]
    assert back.lengths.tolist() == [4, 4, 4] and back.usable.tolist() == SequenceSet(sequences).usable.tolist()
    for one, other in zip(sequences, back, strict=True):
        assert_same(one, other)


def test_saved_sets_hold_the_files_and_no_folder_of_this_machine(sequences, root, tmp_path):
    to_hf_dataset(sequences).save_to_disk(tmp_path / "saved")
    for file in (tmp_path / "saved").iterdir():
        assert str(root).encode() not in file.read_bytes()
    loaded = datasets.load_from_disk(tmp_path / "saved")
    back = from_hf_dataset(loaded)
    for one, other in zip(sequences, back, strict=True):
        assert_same(one, other)
    frames = back[1].frames["rgb"]
    assert frames[0].read_bytes() == sequences[1].frames["rgb"][0].read_bytes() and len(frames[1:3]) == 2
    assert str(frames[-1]) == "f_121.bmp in sequence 'c'"
    chosen = from_hf_dataset(loaded.shuffle(seed=1).select([2, 0]))
    assert sorted(chosen.names) == sorted({"b10", "c", "d"} - {from_hf_dataset(loaded.shuffle(seed=1))[1].name})
    again = to_hf_dataset(back)  # from encoded frames, not from files
    assert again[1]["frames"][0] == {"path": "f_9.bmp", "bytes": frames[0].read_bytes()}
    assert_same(from_hf_dataset(again)[1], sequences[1])


def test_folders_of_datasets_are_loaded(sequences, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    whole = to_hf_dataset(sequences)
    whole.save_to_disk(tmp_path / "one")
    splits = datasets.DatasetDict({"train": whole.select([0, 1]), "test": whole.select([2])})
    splits.save_to_disk(tmp_path / "two")
    for name, rows in splits.items():
        rows.to_parquet(tmp_path / "parquet" / "data" / f"{name}-00000-of-00001.parquet")
    for split in (None, "train"):
        assert load_hf_dataset(tmp_path / "one", split).names == ["b10", "c", "d"]
    for folder in ("two", "parquet"):
        loaded = load_hf_dataset(tmp_path / folder, "train")
        assert isinstance(loaded, SequenceSet) and load_hf_dataset(tmp_path / folder, "test").names == ["d"]
        for one, other in zip(sequences[:2], loaded, strict=True):
            assert_same(one, other)
        for split in (None, "val"):
            with pytest.raises(ValueError, match=rf"{folder}.*train.*test"):
                load_hf_dataset(tmp_path / folder, split)
    datasets.load_dataset(str(tmp_path / "parquet"), split="test").save_to_disk(tmp_path / "named")
    assert load_hf_dataset(tmp_path / "named").names == load_hf_dataset(tmp_path / "named", "test").names == ["d"]
    with pytest.raises(ValueError, match="named has the splits test; got split='train'"):
        load_hf_dataset(tmp_path / "named", "train")
    whole.remove_columns("boxes").save_to_disk(tmp_path / "less")
    with pytest.raises(ValueError, match="less: the dataset lacks the column boxes"):
        load_hf_dataset(tmp_path / "less")
    with pytest.raises(ValueError, match=r"cannot load the dataset .*nowhere: .*\. Expected the id of a dataset"):
        load_hf_dataset(tmp_path / "nowhere", "train")


def test_a_name_from_a_dataset_leads_nowhere(sequences, tmp_path):
    rows = to_hf_dataset(sequences[:1]).map(lambda row: {"name": "../../escaped"})
    with pytest.raises(ValueError, match="escaped' cannot name a file"):
        from_hf_dataset(rows)[0]


def test_streams(sequences, tmp_path):
    to_hf_dataset(sequences).save_to_disk(tmp_path / "saved")
    streamed = datasets.load_from_disk(tmp_path / "saved").to_iterable_dataset(num_shards=3)
    for one, other in zip(sequences, from_hf_dataset(streamed), strict=True):
        assert_same(one, other)
    shuffled = from_hf_dataset(streamed.shuffle(seed=0, buffer_size=3))
    orders = []
    for epoch in (0, 1, 2, 3, 0):
        shuffled.set_epoch(epoch)
        orders.append([sequence.name for sequence in shuffled])
    assert orders[0] == orders[4] and len({tuple(order) for order in orders}) > 1


def test_a_foreign_dataset_needs_three_columns():
    ok, data = cv2.imencode(".png", np.full((4, 5, 3), 7, np.uint8))
    row = {"name": "a", "frames": [{"path": None, "bytes": data.tobytes()}] * 2,
           "boxes": [[1, 2, 3, 4], [0, 0, 0, 0]]}  # fmt: skip
    features = datasets.Features({
        "name": datasets.Value("string"), "frames": datasets.List(datasets.Image(decode=False)),
        "boxes": datasets.List(datasets.List(datasets.Value("float32"))),
    })  # fmt: skip
    given = datasets.Dataset.from_list([row], features=features)
    sequences = from_hf_dataset(given)
    assert ok and sequences.lengths.tolist() == [2] and sequences.usable.tolist() == [1] and sequences.names == ["a"]
    assert sequences[0].boxes_xywh.dtype == np.float64 and sequences[0].read(1)["rgb"].max() == 7
    with pytest.raises(ValueError, match="lacks the column boxes; it has name, frames"):
        from_hf_dataset(given.remove_columns("boxes"))
    with pytest.raises(ValueError, match="no sequences"):
        to_hf_dataset([])


def test_broken_images_in_memory_are_named():
    with pytest.raises(ValueError, match=r"the image 7\.jpg in sequence 'a' is empty"):
        read_image(EncodedImage("7.jpg", b"", "sequence 'a'"))


@pytest.fixture(scope="module")
def long_root(tmp_path_factory) -> Path:
    """Two RGB-T sequences that are long enough to train on, in a folder of their own, and one that is not."""
    rng = np.random.default_rng(1)
    root = grow(tmp_path_factory.mktemp("long"), rgbt("ab/a") | rgbt("ab/b") | visevent("c"))
    for folder in (root / "ab" / "a", root / "ab" / "b"):
        for stream in ("visible", "infrared"):
            for k in range(5, 25):
                (folder / stream / f"v{k:06d}.jpg").touch()
            (folder / f"{stream}.txt").write_text(BOX * 24)
    for file in sorted(root.rglob("*.*")):
        if file.suffix in (".jpg", ".bmp"):
            assert cv2.imwrite(str(file), rng.integers(0, 256, (60, 80, 3), np.uint8))
    return root


@pytest.mark.slow
def test_push_to_a_hub_and_stream(long_root, tmp_path):
    code = f"from pathlib import Path; import dataset_rounds as rounds; root = Path({str(long_root)!r})"
    with LocalHub() as hub:
        found = ast.literal_eval(hub.run(f"{code}; print(rounds.there_and_back(root))", tmp_path / "home"))
        files = hub.files("datasets/org/tiny-tracking-set")
        assert len([name for name in files if name.endswith(".parquet")]) == 2
        assert not any(str(long_root).encode() in data for data in files.values())
    assert found["names"] == ["a", "b", "c"] and found["same"] == [True] * 3
    assert found["shapes"] == [(2, 3, 64, 64)] * 4  # of "a" and "b"; "c" is too short to train on
    assert found["paths"] == ["v000001.jpg", "v000002.jpg"]


@pytest.mark.slow
def test_finetune_by_id_equals_finetune_on_the_folder(long_root, tmp_path):
    places = [str(long_root / "ab"), str(tmp_path)]
    code = f"from pathlib import Path; import dataset_rounds as rounds; root, out = map(Path, {places})"
    with LocalHub() as hub:
        said = hub.run(f"{code}; print(rounds.trained(root, out))", tmp_path / "home")
    losses = ast.literal_eval(said.splitlines()[-1])
    assert losses["folder"] == losses["id"] == losses["parts"]
    assert [entry["step"] for entry in losses["id"] if "loss" in entry] == [1, 2]
    assert (tmp_path / "id" / "best" / "adapter_model.safetensors").is_file()
    card = (tmp_path / "id" / "README.md").read_text()
    assert "Data: sequences of org/tiny-tracking-set" in card and "datasets:\n- org/tiny-tracking-set" in card


@pytest.mark.skipif(not REAL.is_dir(), reason="the sample sequences (../shared/data) are not here")
def test_real_sequences(tmp_path):
    sequences = open_dataset(REAL)
    for one, other in zip(sequences, from_hf_dataset(to_hf_dataset(sequences)), strict=True):
        assert_same(one, other)
