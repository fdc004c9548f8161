"""The index file of a large set: it says what the listing said, and is made anew when anything has changed."""

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from test_data_sets import BOX, ROWS, grow

from mmtrackers.data import index, open_dataset
from mmtrackers.data.index import IndexedSet
from mmtrackers.data.sequence import FrameFiles
from mmtrackers.data.sets import SequenceSet

ARRAYS = ("boxes_xywh", "present", "annotated", "second_boxes_xywh")
EQUAL = ("name", "layout", "dataset", "min_side", "attributes")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MMTRACKERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "INDEXED_FROM", 1)
    return tmp_path / "cache"


def same(one: SequenceSet, other: SequenceSet) -> bool:
    assert one.names == other.names and one.lengths.tolist() == other.lengths.tolist()
    assert one.usable.tolist() == other.usable.tolist()
    for a, b in zip(one, other, strict=True):
        assert all(getattr(a, name) == getattr(b, name) for name in EQUAL)
        assert {m: list(files) for m, files in a.frames.items()} == {m: list(files) for m, files in b.frames.items()}
        assert a.extras.keys() == b.extras.keys()
        arrays = [(getattr(a, name), getattr(b, name)) for name in ARRAYS]
        for mine, others in [*arrays, *((a.extras[name], b.extras[name]) for name in a.extras)]:
            assert (mine is None) == (others is None)
            if mine is not None:
                assert mine.dtype == others.dtype
                np.testing.assert_array_equal(mine, others)
    return True


@pytest.mark.parametrize("row", ["lasher-train", "gtot", "vtuav-short", "visevent", "vot22rgbd", "got10k-val",
                                 "otb100", "coco", "trackingnet-test", "rgbt234"])
def test_the_index_says_what_the_listing_said(tmp_path, monkeypatch, cache, row):
    dataset, split, files = ROWS[row][:3]
    root = grow(tmp_path / "root", files)
    indexed = open_dataset(root, dataset=dataset, split=split)
    assert isinstance(indexed, IndexedSet) and len(list(cache.glob("index/*.arrow"))) == 1
    again = open_dataset(root, dataset=dataset, split=split)
    assert isinstance(again, IndexedSet) and again.path == indexed.path
    monkeypatch.setattr(index, "INDEXED_FROM", 10**9)
    indexed.path.unlink()
    plain = open_dataset(root, dataset=dataset, split=split)
    assert not isinstance(plain, IndexedSet)
    assert same(again, plain) and same(pickle.loads(pickle.dumps(plain)), plain)


def test_an_open_index_is_not_listed_again(tmp_path, monkeypatch):
    root = grow(tmp_path / "root", ROWS["trackingnet"][2])
    first = open_dataset(root, dataset="trackingnet", split="train")
    monkeypatch.setattr("mmtrackers.data.datasets.read_entry", None)
    assert same(open_dataset(root, dataset="trackingnet", split="train"), first)
    assert same(pickle.loads(pickle.dumps(first)), first)
    assert [s.name for s in first[:1]] == [first[-2].name] == ["x_0"]
    with pytest.raises(IndexError, match="sequence 2 of 2"):
        first[2]
    first[0].boxes_xywh[:] = 7  # as with a plain array; the file stays as it is
    assert open_dataset(root, dataset="trackingnet", split="train")[0].boxes_xywh[0].tolist() == [10, 20, 30, 40]


CHANGES = {
    "a frame more": lambda root: (root / "testingset/b9/infrared/i000009.jpg").touch(),
    "a frame fewer": lambda root: (root / "testingset/b9/visible/v000001.jpg").unlink(),
    "boxes": lambda root: (root / "testingset/b10/visible.txt").write_text("1,20,30,40\n" + BOX * 3),
    "second boxes": lambda root: (root / "testingset/b10/infrared.txt").write_text("1,2,3,4\n" * 4),
    "a sequence more": lambda root: grow(root, {f"testingset/new/{k.split('/', 2)[2]}": v
                                                for k, v in ROWS["lasher-test"][2].items() if "/b9/" in k}),
    "a box file more": lambda root: (root / "testingset/b9/visible.txt").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_seen(tmp_path, change):
    root = grow(tmp_path / "root", ROWS["lasher-test"][2])
    before = open_dataset(root, dataset="lasher", split="test")
    assert before.is_current()
    CHANGES[change](root)
    assert not before.is_current()
    if "frame" in change:
        with pytest.raises(ValueError, match=r"b9.*(5 boxes|4 boxes|has no rgb frame of that number)"):
            open_dataset(root, dataset="lasher", split="test")
    else:
        after = open_dataset(root, dataset="lasher", split="test")
        assert after.is_current() and len(after) == 2 + (change == "a sequence more")


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[: len(data) // 2],
                                    lambda data: b"?" * 99, lambda data: b""])
def test_a_damaged_index_is_made_anew(tmp_path, cache, caplog, damage):
    root = grow(tmp_path / "root", ROWS["lasher-test"][2])
    names = open_dataset(root, dataset="lasher", split="test").names
    (file,) = cache.glob("index/*.arrow")
    file.write_bytes(damage(file.read_bytes()))
    assert open_dataset(root, dataset="lasher", split="test").names == names
    assert "listing anew" in caplog.text and list(cache.glob("index/*")) == [file]


def test_no_flipped_bit_gets_into_the_data(tmp_path, cache, caplog):
    root = grow(tmp_path / "root", ROWS["lasher-test"][2])
    open_dataset(root, dataset="lasher", split="test")
    (file,) = cache.glob("index/*.arrow")
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for at, bit in zip(rng.integers(0, len(whole), 300), rng.integers(0, 8, 300), strict=True):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        file.write_bytes(damaged)
        caplog.clear()
        assert index._current(index_of(file)) is None and "is damaged" in caplog.text


def index_of(file: Path) -> Path:
    return file.with_name(file.stem.rpartition("-")[0])


def test_without_a_place_for_the_index(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMTRACKERS_CACHE", str(tmp_path / "file"))
    root = grow(tmp_path / "root", ROWS["lasher-test"][2])
    assert open_dataset(root, dataset="lasher", split="test").names == ["b9", "b10"]
    assert "no index is kept" in caplog.text and "MMTRACKERS_CACHE" in caplog.text


def test_a_failed_listing_leaves_nothing(tmp_path, cache):
    root = grow(tmp_path / "root", ROWS["lasher-test"][2])
    os.remove(root / "testingset/b10/infrared/i000001.jpg")
    with pytest.raises(ValueError, match="4 rgb frames, 3 thermal frames"):
        open_dataset(root, dataset="lasher", split="test")
    assert not list(cache.glob("index/*"))


def test_frame_names_take_little_memory():
    names = [f"{k:08d}.jpg" for k in range(20_000)]
    tracemalloc.start()
    files = FrameFiles.of("/somewhere", names)
    assert tracemalloc.get_traced_memory()[0] < 14 * 20_000
    tracemalloc.stop()
    assert len(files) == 20_000 and files[19_999] == Path("/somewhere/00019999.jpg") and list(files)[7] == files[7]
    odd = FrameFiles.of("/somewhere", ["a\udcff b.jpg", "ü.png"])
    assert [path.name for path in odd] == ["a\udcff b.jpg", "ü.png"] and odd[1:] == [Path("/somewhere/ü.png")]
