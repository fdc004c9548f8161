"""Training samples out of sets that are not lists: indexed, joined, streamed; and failures over all workers."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mmtrackers.data import from_hf_dataset, index, open_dataset, to_hf_dataset
from mmtrackers.data.index import IndexedSet
from mmtrackers.processing.image_processing import TrackerImageProcessor
from mmtrackers.training import PairDataset
from mmtrackers.training.frame_samplers import IntervalSampler
from mmtrackers.training.sampling import Failures, StreamSamples, mixture


@pytest.fixture(scope="module")
def processor() -> TrackerImageProcessor:
    return TrackerImageProcessor(template_size=32, search_size=64)


@pytest.fixture
def root(tmp_path) -> Path:
    """Three RGB-T sequences of 24 frames, and one that is too short."""
    rng = np.random.default_rng(0)
    for name, count in (("a", 24), ("b", 24), ("c", 24), ("short", 6)):
        for stream in ("rgb", "thermal"):
            (tmp_path / "set" / name / stream).mkdir(parents=True)
            for k in range(count):
                picture = rng.integers(0, 256, (60, 80, 3), np.uint8)
                assert cv2.imwrite(str(tmp_path / "set" / name / stream / f"{k}.png"), picture)
        (tmp_path / "set" / name / "groundtruth.txt").write_text("30,20,16,12\n" * count)
    return tmp_path / "set"


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_kind_of_set_gives_the_same_samples(root, processor, tmp_path, monkeypatch):
    monkeypatch.setenv("MMTRACKERS_CACHE", str(tmp_path / "cache"))
    plain = open_dataset(root)
    monkeypatch.setattr(index, "INDEXED_FROM", 1)
    indexed = open_dataset(root)
    joined, chances = mixture([indexed[:2], open_dataset(root, ["c", "short"])], [2, 2])
    assert isinstance(indexed, IndexedSet) and indexed.modalities == joined.modalities == {"thermal"}
    assert joined.names == ["a", "b", "c", "short"] and [joined[i].name for i in (0, 2, -1)] == ["a", "c", "short"]
    assert joined.lengths.tolist() == [24, 24, 24, 6] and chances.tolist() == [1, 1, 1, 1]
    saved = to_hf_dataset(plain)
    datasets = [PairDataset(one, processor, "thermal", 2, 8, seed=1, skip_short=True)
                for one in (plain, indexed, joined, from_hf_dataset(saved), pickle.loads(pickle.dumps(indexed)))]
    for k in range(8):
        assert all(equal(datasets[0][k], other[k]) for other in datasets[1:])
    assert "short" not in " ".join(datasets[2].describe(k) for k in range(8))


def test_a_draw_without_frames_is_drawn_anew(root, processor):
    class Picky(IntervalSampler):
        def __call__(self, visible, length, rng):
            if rng.random() < 0.5:
                raise ValueError("nothing to draw here")
            return super().__call__(visible, length, rng)

    pairs = PairDataset(open_dataset(root, ["a"]), processor, "thermal", 2, 20, frame_sampler=Picky())
    assert [pairs[k] for k in range(20)] and not pairs.unreadable


def test_failures_of_all_workers_are_counted(root, processor):
    for k in range(3, 9):
        (root / "a" / "thermal" / f"{k}.png").write_bytes(b"")
        (root / "b" / "rgb" / f"{k}.png").write_bytes((root / "b" / "rgb" / f"{k}.png").read_bytes()[:200])
    pairs = PairDataset(open_dataset(root, ["a", "b"]), processor, "thermal", 2, 60, seed=0)
    alone = [pairs[k] for k in range(60)]
    counts = pairs.unreadable
    assert all(any(what in reason for reason in counts) for what in ("png is empty", "png is truncated"))
    pairs = PairDataset(open_dataset(root, ["a", "b"]), processor, "thermal", 2, 60, seed=0)
    loader = DataLoader(pairs, batch_size=None, num_workers=2)
    assert all(equal(one, other) for one, other in zip(alone, loader, strict=True))
    assert pairs.unreadable == counts


def test_the_file_of_failures_goes_with_its_owner():
    failures = Failures()
    path = Path(failures._path)
    copy = pickle.loads(pickle.dumps(failures))
    copy.add("a\nb")
    del copy
    assert path.exists() and failures.counts() == {"a b": 1}
    del failures
    assert not path.exists()


def test_streamed_samples(root, processor, caplog):
    rows = to_hf_dataset(open_dataset(root)).to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=4)
    samples = StreamSamples(from_hf_dataset(rows), processor, "thermal", 2, samples_per_sequence=3, seed=5)
    first = list(samples)
    assert len(first) == 9 and first[0]["search"].shape == (2, 3, 64, 64)
    assert "'short' is too short: 6 frames, 6 with a usable box" in caplog.text and samples.unreadable.total() == 1
    assert all(equal(one, other) for one, other in zip(first, samples, strict=True))
    by_workers = list(DataLoader(samples, batch_size=None, num_workers=2))
    assert len(by_workers) == 9 and all(any(equal(one, other) for other in first) for one in by_workers)
    samples.set_epoch(1)
    assert not any(equal(one, other) for one in samples for other in first)
    for bad in ({"samples_per_sequence": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="must be positive and seed"):
            StreamSamples(from_hf_dataset(rows), processor, "thermal", 2, **bad)


def test_workers_that_live_on_see_the_new_epoch(root, processor):
    rows = to_hf_dataset(open_dataset(root, ["a", "b"])).to_iterable_dataset(num_shards=2)
    samples = StreamSamples(from_hf_dataset(rows), processor, "thermal", 2, samples_per_sequence=2, seed=5)
    expected = []
    for epoch in (0, 1):
        samples.set_epoch(epoch)
        expected.append(list(samples))
    loader = DataLoader(samples, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        samples.set_epoch(epoch)
        assert all(equal(one, other) for one, other in zip(loader, expected[epoch], strict=True))
    assert not any(equal(one, other) for one, other in zip(*expected, strict=True))


def test_a_stream_goes_on_after_a_sequence_that_cannot_be_read(root, processor):
    for file in (root / "b" / "rgb").iterdir():
        file.write_bytes(b"no picture")
    rows = to_hf_dataset(open_dataset(root)).to_iterable_dataset()
    samples = StreamSamples(from_hf_dataset(rows), processor, "thermal", 2, samples_per_sequence=2)
    assert len(list(samples)) == 4
    assert any("'b': 50 samples in a row cannot be used" in reason for reason in samples.unreadable)
