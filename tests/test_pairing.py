"""Which frames of two streams go together."""

import cv2
import numpy as np
import pytest

from mmtrackers.data import open_dataset, open_sequence
from mmtrackers.data.pairing import frame_numbers, frame_times, nearest_in_time, paired


def named(numbers, form="{:05d}.jpg"):
    return [form.format(number) for number in numbers]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (named(range(3)), [0, 1, 2]),
        (["v000.jpg", "v002.jpg"], [0, 2]),
        (["00008v.jpg", "00009v.jpg"], [8, 9]),
        (["cam2_f008.png", "cam2_f010.png"], [8, 10]),
        (["7.png"], [7]),
        (["a.png", "b.png"], None),
        (["1_5.png", "2_5.png"], [1, 2]),
        (["1_5.png", "2_6.png", "3_6.png"], None),
        (["10.25.png", "10.50.png"], None),
    ],
)
def test_numbers_of_frames(names, numbers):
    found = frame_numbers(names)
    assert (None if found is None else found.tolist()) == numbers


def test_times_in_names_keep_their_digits():
    times = frame_times(["1305031102.175304.png", "1305031102.275310.png", "1305031103.000000.png"])
    np.testing.assert_allclose(times - times[0], [0, 0.100006, 0.824696], atol=1e-6)
    assert frame_times(named(range(3))) is None


@pytest.mark.parametrize(
    ("rgb", "other"),
    [
        (named(range(5), "v{:03d}.jpg"), named(range(5), "i{:03d}.jpg")),
        (named(range(8, 12), "{:05d}v.jpg"), named(range(8, 12), "{:03d}i.jpg")),
        (named(range(5)), named(range(100, 105))),
        (named([1, 2, 5, 6]), named([0, 1, 4, 5])),
        (named("abcd", "{}.png"), named("efgh", "{}.png")),
    ],
    ids=["lasher", "rgbt234", "offset", "offset and gap", "no numbers"],
)
def test_streams_that_agree(rgb, other):
    for side in paired(rgb, other, "thermal"):
        assert side.tolist() == list(range(len(rgb)))


GAP_9, GAP_5 = named([n for n in range(1, 13) if n != 9]), named([n for n in range(1, 13) if n != 5])


def test_gaps_in_both_streams_are_named_and_taken_care_of():
    with pytest.raises(ValueError, match=r"frame 5 \(00005\.jpg\) has no thermal frame.*--pair-by number.*rank"):
        paired(GAP_9, GAP_5, "thermal")
    with pytest.raises(ValueError, match=r"frame 5 \(00005\.jpg\) has no rgb frame"):
        paired(GAP_5, GAP_9, "thermal")
    left, right = paired(GAP_9, GAP_5, "thermal", "number")
    assert [GAP_9[i] for i in left] == [GAP_5[i] for i in right] and len(left) == 10
    left, right = paired(GAP_9, GAP_5, "thermal", "rank")
    assert left.tolist() == right.tolist() == list(range(11))


def test_a_gap_behind_an_offset():
    rgb, other = named(range(50)), named([n for n in range(100, 150) if n != 120])
    with pytest.raises(ValueError, match=r"frame 20 \(00020\.jpg\) has no depth frame.*50 rgb frames, 49 depth"):
        paired(rgb, other, "depth")
    left, right = paired(rgb, other, "depth", "number")
    assert len(left) == 49 and (left[20], right[20]) == (21, 20)


def test_counts_of_names_without_numbers():
    with pytest.raises(ValueError, match="2 rgb frames but 3 depth frames: the streams must be paired"):
        paired(["a.png", "b.png"], ["a.png", "b.png", "c.png"], "depth")
    with pytest.raises(ValueError, match="hold no numbers"):
        paired(["a.png", "b.png"], ["a.png", "b.png"], "depth", "number")


def write(folder, names, depth=False):
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        picture = np.full((8, 10), 1000 + i, np.uint16) if depth else np.full((8, 10, 3), i, np.uint8)
        cv2.imwrite(str(folder / name), picture)


def test_a_cut_layout_does_not_shift_its_depth(tmp_path):
    folder = tmp_path / "mug"
    write(folder / "color", named(range(1, 11)))
    write(folder / "depth", named(range(1, 11), "{:05d}.png"), depth=True)
    (folder / "groundtruth.txt").write_text("".join(f"{i},1,3,3\n" for i in range(7)))
    assert len(open_sequence(folder)) == 7
    (folder / "depth" / "00003.png").unlink()
    with pytest.raises(ValueError, match=r"'mug'.*frame 3 \(00003\.jpg\) has no depth frame"):
        open_sequence(folder)
    sequence = open_sequence(folder, pair_by="number")
    assert sequence.boxes_xywh[:, 0].tolist() == [0, 1, 3, 4, 5, 6]
    assert [path.stem for path in sequence.frames["rgb"]] == [path.stem for path in sequence.frames["depth"]]
    assert len(open_dataset(tmp_path, pair_by="number")[0]) == 6


def test_rows_of_both_streams_follow_their_frames(tmp_path):
    folder = tmp_path / "boy"
    write(folder / "visible", GAP_9)
    write(folder / "infrared", GAP_5)
    (folder / "visible.txt").write_text("".join(f"{int(name[:5])},1,3,3\n" for name in GAP_9))
    (folder / "infrared.txt").write_text("".join(f"{int(name[:5])},1,3,3\n" for name in GAP_5))
    sequence = open_sequence(folder, pair_by="number")
    numbers = [int(path.stem) for path in sequence.frames["thermal"]]
    assert sequence.boxes_xywh[:, 0].tolist() == sequence.second_boxes_xywh[:, 0].tolist() == numbers


def test_nearest_in_time():
    rgb = [(k / 25, k) for k in range(25)]
    half = list(nearest_in_time(rgb, [(k / 12.5, k) for k in range(13)], 0.5 / 12.5 + 1e-6))
    assert all(abs(a / 25 - b / 12.5) <= 0.04 + 1e-6 for a, b in half) and len(half) == 25
    nine = list(nearest_in_time([(k / 9, k) for k in range(9)], rgb, 0.5 / 9))
    assert [b for _, b in nine] == [round(25 * k / 9) for k in range(9)]
    with pytest.raises(ValueError, match=r"nothing within 0\.020 s of 0\.520 s.*at 0\.480 s"):
        list(nearest_in_time(rgb, rgb[:13], 0.02))
    with pytest.raises(ValueError, match="has no frame"):
        list(nearest_in_time(rgb, [], 0.02))
