"""Sequences on disk and their images."""

import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmtrackers.data import open_dataset, open_sequence
from mmtrackers.data.annotations import read_boxes
from mmtrackers.data.images import read_image, read_pages
from mmtrackers.data.layouts import LAYOUTS
from mmtrackers.data.sequence import Sequence, natural_names

REAL = Path(__file__).parents[2] / "shared" / "data"
BOX = "10,20,30,40\n"


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def picture(value: int = 0, shape: tuple[int, ...] = (48, 64, 3), dtype: type = np.uint8) -> np.ndarray:
    return np.full(shape, value, dtype)


def frames(folder: Path, count: int, name: str = "%d.png", **form) -> None:
    """Images whose value is their position; unpadded names, so that text order would be wrong from the tenth on."""
    for i in range(count):
        write(folder / (name % (i + 1)), picture(i, **form))


def tree(root: Path, streams: dict[str, dict], files: dict[str, str], count: int = 12) -> Path:
    for folder, form in streams.items():
        frames(root / folder, count, **form)
    for name, text in files.items():
        file = Path(os.path.normpath(root / name))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


DEPTH = {"shape": (48, 64), "dtype": np.uint16}
ROWS12 = BOX * 12
POLYGON = "334.02,128.36,438.19,188.78,396.39,260.83,292.23,200.41\n"
LASHER = {"visible": {"name": "v%d.png"}, "infrared": {"name": "i%d.png"}}
VISEVENT = {"vis_imgs": {"name": "frame%d.bmp"}, "event_imgs": {"name": "frame%d.bmp"}}
POLYGON_BOUNDS = [292.23, 128.36, 145.96, 132.47]
# layout, streams, files, modality, frames where the target is absent (or not annotated), first box if not 10,20,30,40
TREES = {
    "lasher": ("LasHeR, RGBT234, RGBT210", LASHER, {
        "visible.txt": BOX * 11 + "0,0,0,0\n", "infrared.txt": "1,2,3,4\n" * 12, "init.txt": "9,9,9,9\n" * 12,
    }, "thermal", [11]),
    "rgbt210": ("LasHeR, RGBT234, RGBT210", LASHER, {"init.txt": ROWS12}, "thermal", []),
    "vtuav": ("VTUAV", {"rgb": {}, "ir_gray": {}}, {
        "rgb.txt": "10 20 30 40\n50 60 70 80\n", "ir.txt": "1 2 3 4\n" * 2,
    }, "thermal", [*range(1, 10), 11]),
    "gtot": ("GTOT", {"v": {}, "i": {}}, {
        "groundTruth_v.txt": "40 60 10 20\n" * 12, "groundTruth_i.txt": "10 20 40 60\n" * 12,
    }, "thermal", []),
    "visevent": ("VisEvent", VISEVENT, {
        "groundtruth.txt": ROWS12, "absent_label.txt": "1\n0\n" + "1\n" * 10,
    }, "event", [1]),
    "depthtrack": ("DepthTrack, CDTB, VOT-RGBD", {"color": {}, "depth": DEPTH}, {
        "groundtruth.txt": BOX + "nan,nan,nan,nan\n" + "10 20 30 40\n" * 10,
    }, "depth", [1]),
    "vot-rgbt": ("VOT-RGBT", {"color": {}, "ir": {}}, {"groundtruth.txt": ROWS12}, "thermal", []),
    "vot": ("VOT", {"color": {}}, {
        "groundtruth.txt": POLYGON + "0\n" + POLYGON * 10, "sequence": "channels.color=color/%08d.jpg\n",
    }, "rgb", [1], POLYGON_BOUNDS),
    "lasot": ("LaSOT", {"img": {}}, {
        "groundtruth.txt": ROWS12, "full_occlusion.txt": "0,1" + ",0" * 10, "out_of_view.txt": "0,0,1" + ",0" * 9,
    }, "rgb", [1, 2]),
    "otb": ("OTB", {"img": {}}, {"groundtruth_rect.txt": "10\t20\t30\t40\r\n" * 12}, "rgb", []),
    "got10k": ("GOT-10k", {"": {"name": "%08d.png"}}, {
        "groundtruth.txt": ROWS12, "absence.label": "0\n1\n" + "0\n" * 10, "cover.label": "8\n" * 12,
    }, "rgb", [1]),
    "coesot": ("COESOT", {"seq_aps": {"name": "frame%d.png"}, "seq_dvs": {"name": "frame%d.bmp"}}, {
        "groundtruth.txt": "10.0000,20.0000,30.0000,40.0000\n" * 12, "absent.txt": "1\n" * 10 + "0\n0\n",
    }, "event", [10, 11]),
    "fe108": ("FE108", {"img": {}, "stack": {}}, {"groundtruth_rect.txt": ROWS12}, "event", []),
    "tnl2k": ("TNL2K", {"imgs": {}}, {"groundtruth.txt": BOX * 11 + "0,0,0,0\n", "language.txt": "?"}, "rgb", [11]),
    "trackingnet": ("TrackingNet", {"": {"name": "%d.png"}}, {"../../anno/seq.txt": ROWS12}, "rgb", []),
    "nfs": ("NFS", {"30/seq": {}}, {"30/seq.txt": "0 10 20 40 60 1 0 0 0 \"a ball\"\n" * 90}, "rgb", []),
    "nfs-converted": ("NFS as pytracking has it", {"": {}}, {
        "../../anno/nfs_seq.txt": "10\t20\t30\t40\n" * 12,
    }, "rgb", []),
    "uav123": ("UAV123", {"": {}}, {"../../../anno/UAV123/seq.txt": "NaN,NaN,NaN,NaN\n" + BOX * 11}, "rgb", [0],
               [np.nan] * 4),
    "own-rgb": ("own folder", {"": {}}, {"groundtruth.txt": "\ufeff" + "10, 20, 30, 40\r\n" * 12 + "\r\n"}, "rgb",
                []),
    "own-first-box": ("own folder", {"": {}}, {"groundtruth.txt": BOX}, "rgb", range(1, 12)),
    "own-bare": ("own folder", {"": {}}, {}, "rgb", range(12), [np.nan] * 4),
    "own-thermal": ("own folders", {"rgb": {}, "thermal": DEPTH}, {"groundtruth.txt": ROWS12}, "thermal", []),
    "own-depth": ("own folders", {"rgb": {}, "depth": DEPTH}, {"groundtruth.txt": ROWS12}, "depth", []),
    "own-event": ("own folders", {"rgb": {}, "event": {}}, {"groundtruth.txt": ROWS12}, "event", []),
}


@pytest.mark.parametrize("name", TREES)
def test_layouts(tmp_path, name):
    layout, streams, files, modality, absent, first = (*TREES[name], [10, 20, 30, 40])[:6]
    sequence = open_sequence(tree(tmp_path / "a/b/c/seq", streams, files))
    assert (sequence.layout, sequence.name, sequence.modality, len(sequence)) == (layout, "seq", modality, 12)
    np.testing.assert_allclose(sequence.boxes_xywh[0], first, atol=1e-9)
    assert np.flatnonzero(~sequence.present).tolist() == list(absent)
    for image in sequence.read(9).values():
        assert image.flat[0] == 9
    assert list(sequence.read(0)) == (["rgb"] if modality == "rgb" else ["rgb", modality])


def test_every_layout_is_tested():
    assert {row[0] for row in TREES.values()} == {layout.name for layout in LAYOUTS}


def test_annotated_and_second_boxes(tmp_path):
    sequence = open_sequence(tree(tmp_path / "seq", *TREES["vtuav"][1:3]))
    assert np.flatnonzero(sequence.annotated).tolist() == [0, 10]
    assert sequence.boxes_xywh[10].tolist() == [50, 60, 70, 80]
    thermal = sequence.second_as_rgb()
    assert thermal.boxes_xywh[10].tolist() == [1, 2, 3, 4] and thermal.present.sum() == 2
    assert thermal.modality == "rgb" and thermal.frames["rgb"][0].parent.name == "ir_gray"
    assert sequence.rgb_only().modality == "rgb"
    with pytest.raises(ValueError, match="no thermal or event stream"):
        sequence.rgb_only().second_as_rgb()


def test_training_leaves_small_boxes_out(tmp_path):
    rows = "10,20,30,5\n" + BOX * 11
    folder = tree(tmp_path / "seq", TREES["visevent"][1], {"groundtruth.txt": rows})
    sequence = open_sequence(folder)
    assert sequence.present.all() and np.flatnonzero(~sequence.trainable).tolist() == [0]


FAULTS = {
    "lasher-missing-stream": ({"visible": {}}, {"visible.txt": ROWS12}, "no thermal frames: the folder infrared/"),
    "lasher-row-lost": (TREES["lasher"][1], {"visible.txt": BOX * 11}, "has 11 boxes for 12 frames"),
    "vtuav-rows": (TREES["vtuav"][1], {"rgb.txt": BOX * 3}, r"3 boxes for 12 frames.*one per 10 frames \(2\)"),
    "flags": (TREES["visevent"][1], {"groundtruth.txt": ROWS12, "absent_label.txt": "1\n" * 11}, "11 flags for 12"),
    "text": ({"": {}}, {"groundtruth.txt": BOX * 2 + "a,b,c,d\n"}, "line 3: 'a,b,c,d' is not a row of numbers"),
    "three numbers": ({"": {}}, {"groundtruth.txt": BOX + "1,2,3\n"}, "line 2: 3 numbers; expected 4"),
    "empty annotation": ({"": {}}, {"groundtruth.txt": ""}, "0 boxes for 12 frames"),
    "two second streams": ({"rgb": {}, "thermal": {}, "depth": DEPTH}, {}, "modality='thermal'"),
    "nothing": ({}, {"notes.txt": "?"}, "no sequence was recognized.*images in the folder itself"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_folders(tmp_path, name):
    streams, files, message = FAULTS[name]
    (tmp_path / "seq").mkdir()
    with pytest.raises(ValueError, match=message):
        open_sequence(tree(tmp_path / "seq", streams, files))


def test_unequal_and_empty_streams(tmp_path):
    folder = tree(tmp_path / "seq", TREES["lasher"][1], {"visible.txt": ROWS12})
    (folder / "infrared" / "i3.png").unlink()
    with pytest.raises(ValueError, match=r"'seq'.*frame 3 \(v3\.png\) has no thermal.*12 rgb frames, 11"):
        open_sequence(folder)
    assert open_sequence(folder, modality="rgb").modality == "rgb"
    for file in (folder / "infrared").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"no images in .*infrared"):
        open_sequence(folder)
    with pytest.raises(ValueError, match="no depth frames, only rgb"):
        open_sequence(folder, modality="depth")
    with pytest.raises(ValueError, match="is not a folder"):
        open_sequence(folder / "nowhere")


def test_choice_of_the_second_stream(tmp_path):
    folder = tree(tmp_path / "seq", {"rgb": {}, "thermal": {}, "depth": DEPTH}, {"groundtruth.txt": ROWS12})
    assert open_sequence(folder, modality="depth").modality == "depth"


def test_dataset_folders_and_lists(tmp_path, caplog):
    tree(tmp_path / "trainingset" / "b10", *TREES["lasher"][1:3])
    tree(tmp_path / "trainingset" / "b9", *TREES["lasher"][1:3])
    tree(tmp_path / "loose pictures", {"": {}}, {})
    assert [sequence.name for sequence in open_dataset(tmp_path)] == ["b9", "b10"]
    (tmp_path / "split.txt").write_text("b10\n")
    assert [sequence.name for sequence in open_dataset(tmp_path, tmp_path / "split.txt")] == ["b10"]
    with pytest.raises(ValueError, match=r"1 listed sequences are not below .*: b11"):
        open_dataset(tmp_path, ["b9", "b11"])
    message = "loose pictures has frames .own folder. and no annotation; expected groundtruth.txt or .*init.txt"
    with pytest.raises(ValueError, match=f"no annotated sequence below .*{message}"):
        open_dataset(tmp_path / "loose pictures")
    assert "1 folders have frames and no annotation, and are left out: " in caplog.text


@pytest.mark.parametrize(("names", "expected"), [
    (["10.jpg", "9.jpg", "100.jpg"], ["9.jpg", "10.jpg", "100.jpg"]),
    (["v000010.jpg", "v9.jpg"], ["v9.jpg", "v000010.jpg"]),
    (["12.5.jpg", "12.25.jpg"], ["12.25.jpg", "12.5.jpg"]),
    (["a2b10.png", "a2b9.png", "a10b1.png"], ["a2b9.png", "a2b10.png", "a10b1.png"]),
])
def test_natural_order(names, expected):
    assert natural_names(names) == expected


def test_polygon_with_nan_is_no_box(tmp_path):
    (tmp_path / "g.txt").write_text("1,1,2,2,3,3,nan,nan\n")
    assert np.isnan(read_boxes(tmp_path / "g.txt")).all()


def test_trajectories_of_the_vot_toolkit(tmp_path):
    rows = [struct.pack("<BI", 0, 1), struct.pack("<Bffff", 1, 1.5, 2, 3, 4),
            struct.pack("<BH8f", 2, 4, 0, 0, 4, 1, 4, 3, 0, 2), struct.pack("<BhhHHH2H", 3, 5, 6, 7, 8, 2, 3, 53)]
    data = struct.pack("<hI", 1, len(rows)) + b"".join(rows)
    (tmp_path / "a.bin").write_bytes(data)
    (tmp_path / "a.txt").write_text("1\n1.5,2,3,4\n0,0,4,1,4,3,0,2\nm5,6,7,8,3,53\n")
    for name in ("a.bin", "a.txt"):
        np.testing.assert_array_equal(read_boxes(tmp_path / name), [[np.nan] * 4, [1.5, 2, 3, 4], [0, 0, 4, 3],
                                                                    [5, 6, 7, 8]])  # fmt: skip
    for kept, where in ((-3, "it promises 4 rows and ends in row 3"), (6, "it promises 4 rows and ends in row 0"),
                        (5, "it ends in its header, after 5 of 6 bytes"), (2, "it ends in its header")):  # fmt: skip
        (tmp_path / "cut.bin").write_bytes(data[:kept])
        with pytest.raises(ValueError, match=f"cut.bin is truncated: {where}"):
            read_boxes(tmp_path / "cut.bin")


NOTHING = [np.nan] * 4
A, B = [1.0, 2, 3, 4], [5.0, 6, 7, 8]


@pytest.mark.parametrize(("text", "expected"), [
    ("1,2,3,4\n\n5,6,7,8\n", [A, NOTHING, B]),
    ("1,2,3,4\n,,,\n5,6,7,8\n", [A, NOTHING, B]),  # as pandas writes NaN
    ("1\t2\t3\t4\n\t\t\t\n5\t6\t7\t8", [A, NOTHING, B]),
    ("\n1 2 3 4\n", [NOTHING, A]),
    ("1,2,3,4\n5,6,7,8\n,,,\n", [A, B, NOTHING]),
    ("1,2,3,4\r\n5,6,7,8\r\n\r\n \n", [A, B]),
    ("\ufeff1;2;3;4\r\nNaN;NaN;NaN;NaN\r\n", [A, NOTHING]),
    ("m1,2,3,4,0,12\n0\nm5,6,7,8,1,55\n", [A, NOTHING, B]),
    ("1,2,3,4,\n", [A]),
    ("", []),
])
def test_lines_without_numbers_are_absent_rows(tmp_path, text, expected):
    (tmp_path / "g.txt").write_text(text, newline="")
    np.testing.assert_array_equal(read_boxes(tmp_path / "g.txt"), np.reshape(expected, (-1, 4)))


@pytest.mark.parametrize("line", ["5,,,", "1,,3,4", "5,6", "m1,2", "1,2,3,x"])
def test_damaged_lines_are_named(tmp_path, line):
    (tmp_path / "g.txt").write_text(f"1,2,3,4\n{line}\n5,6,7,8\n")
    with pytest.raises(ValueError, match=r"g\.txt, line 2: "):
        read_boxes(tmp_path / "g.txt")


@pytest.mark.parametrize("name", ["depthtrack", "vot", "vot-rgbt", "otb", "uav123", "nfs", "nfs-converted", "lasot",
                                  "tnl2k", "own-thermal", "lasher"])
@pytest.mark.parametrize("blank", ["", ",,,"])
def test_no_box_moves_up_a_frame(tmp_path, name, blank):
    streams, files = TREES[name][1:3]
    key, every = next((key, 8 if name == "nfs" else 1) for key in files if key.endswith(".txt"))
    lines = files[key].splitlines()
    lines[5 * every : 6 * every] = [blank] * every
    lines[11 * every] = lines[11 * every].replace("10", "11", 1).replace("438", "439", 1)
    sequence = open_sequence(tree(tmp_path / "a/b/c/seq", streams, files | {key: "\n".join(lines)}))
    assert np.isnan(sequence.boxes_xywh[5]).all() and not sequence.present[5] and sequence.present[6]
    assert (sequence.boxes_xywh[11] != sequence.boxes_xywh[10]).any()


def test_a_wrong_count_names_the_line(tmp_path):
    folder = tree(tmp_path / "seq", {"": {}}, {"groundtruth.txt": BOX * 14})
    with pytest.raises(ValueError, match=r"groundtruth\.txt has 14 boxes for 12 frames \(line 13 is one too many\)"):
        open_sequence(folder)
    (folder / "groundtruth.txt").write_text(BOX * 10)
    with pytest.raises(ValueError, match=r"has 10 boxes for 12 frames \(it ends with line 10\)"):
        open_sequence(folder)


def test_capital_endings_and_gaps_in_numbers(tmp_path):
    for number in (3, 4, 9, 100):
        write(tmp_path / "seq" / "rgb" / f"IMG_{number}.JPG", picture(number))
        write(tmp_path / "seq" / "thermal" / f"t{number + 1}.PNG", picture(number))
    (tmp_path / "seq" / "groundtruth.txt").write_bytes(b"\xef\xbb\xbf" + b"1,2,3,4\r\n" * 4)
    sequence = open_sequence(tmp_path / "seq")
    assert [file.name for file in sequence.frames["rgb"]] == ["IMG_3.JPG", "IMG_4.JPG", "IMG_9.JPG", "IMG_100.JPG"]
    assert [file.name for file in sequence.frames["thermal"]] == ["t4.PNG", "t5.PNG", "t10.PNG", "t101.PNG"]
    assert sequence.boxes_xywh.tolist() == [[1, 2, 3, 4]] * 4


@pytest.mark.parametrize("name", ["../../escaped", "/abs", "a/b", "a\\b", "..", ".", "", "a\0b", "a\nb"])
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match="cannot name a file"):
        Sequence(name, {"rgb": [Path("1.png")]}, np.ones((1, 4)), np.ones(1, bool))


def test_sequences_compare_by_identity():
    one, other = (Sequence("a", {"rgb": [Path("1.png")]}, np.ones((1, 4)), np.ones(1, bool)) for _ in range(2))
    assert one in [other, one] and one != other and len({one, other}) == 2


@pytest.mark.parametrize(("modality", "stored", "expected"), [
    ("rgb", np.full((4, 5, 3), (1, 2, 3), np.uint8), np.full((4, 5, 3), (3, 2, 1), np.uint8)),
    ("rgb", picture(7, (4, 5)), picture(7, (4, 5, 3))),
    ("thermal", picture(7, (4, 5)), picture(7, (4, 5))),
    ("thermal", picture(30000, (4, 5), np.uint16), picture(30000, (4, 5), np.uint16)),
    ("event", np.full((4, 5, 3), (1, 2, 3), np.uint8), np.full((4, 5, 3), (3, 2, 1), np.uint8)),
    ("event", np.full((4, 5, 4), (1, 2, 3, 9), np.uint8), np.full((4, 5, 3), (3, 2, 1), np.uint8)),
    ("depth", picture(50000, (4, 5), np.uint16), picture(50000, (4, 5), np.uint16)),
])
def test_reading_of_modalities(tmp_path, modality, stored, expected):
    image = read_image(write(tmp_path / "a.png", stored), modality)
    assert image.dtype == expected.dtype and image.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(("modality", "stored", "message"), [
    ("depth", picture(3, (4, 5)), r"a depth image has one channel of 16 bits, millimeters.*uint8.*\* 1000"),
    ("depth", picture(3, (4, 5), np.float32), r"a depth image has one channel.*float32.*are meters"),
    ("depth", picture(), "a depth image has one channel of 16 bits"),
    ("rgb", picture(900, (4, 5), np.uint16), "has one channel of uint16, so it is no RGB picture: read it as thermal"),
    ("event", picture(0, (4, 5), np.uint16), "pixels of type uint16 cannot be used as event"),
    ("ir", picture(), "modality 'ir': expected one of rgb, thermal, depth, event"),
])
def test_wrong_kind_of_image(tmp_path, modality, stored, message):
    suffix = "tiff" if stored.dtype == np.float32 else "png"
    with pytest.raises(ValueError, match=message):
        read_image(write(tmp_path / f"a.{suffix}", stored), modality)


def test_all_modalities_are_turned_as_the_camera_was_held(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    for name, stored in (("a.jpg", picture(9, (4, 6))), ("a.png", picture(9000, (4, 6), np.uint16)),
                         ("a.tiff", picture(9000, (4, 6), np.uint16))):
        Image.fromarray(stored).save(tmp_path / name, exif=exif)
        modality = "thermal" if stored.dtype == np.uint16 else "event"
        assert read_image(tmp_path / name, modality).shape == (6, 4)
    assert read_image(tmp_path / "a.jpg").shape == (6, 4, 3)
    assert read_image(tmp_path / "a.png", "depth").shape == (6, 4)


def test_degrees_and_pages(tmp_path):
    degrees = np.linspace(20, 40, 20, dtype=np.float32).reshape(4, 5)
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.tiff", degrees), "thermal"), degrees)
    for kind in (np.float32, np.uint16, np.uint8):
        pages = [Image.fromarray(np.full((4, 5), k, kind)) for k in range(3)]
        pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
        found = list(read_pages(tmp_path / "pages.tiff", "thermal"))
        assert [(page.dtype, int(page[0, 0])) for page in found] == [(kind, k) for k in range(3)]
        with pytest.raises(ValueError, match=r"pages\.tiff has 3 pages, which are a sequence"):
            read_image(tmp_path / "pages.tiff", "thermal")
    data = (tmp_path / "pages.tiff").read_bytes()
    for kept in (7, 100, len(data) // 2, len(data) - 20):
        (tmp_path / "cut.tiff").write_bytes(data[:kept])
        with pytest.raises(ValueError, match=r"cut\.tiff, page \d, cannot be read"):
            list(read_pages(tmp_path / "cut.tiff", "thermal"))
    (tmp_path / "cut.tiff").write_bytes(data[:100])
    with pytest.raises(ValueError, match=r"cut\.tiff is not a readable image"):
        read_image(tmp_path / "cut.tiff", "thermal")


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "RGBA"])
def test_pages_of_other_color_modes_keep_their_colors(tmp_path, mode):
    page = Image.fromarray(picture() + np.uint8([204, 51, 102])).convert(mode)
    page.save(tmp_path / "pages.tiff", save_all=True, append_images=[page])
    assert [image[0, 0].tolist() for image in read_pages(tmp_path / "pages.tiff", "rgb")] == [[204, 51, 102]] * 2


def test_radiometric_jpeg_is_said_to_show_a_palette(tmp_path, recwarn):
    picture = np.full((12, 16, 3), 90, np.uint8)
    jpeg, file = cv2.imencode(".jpg", picture)[1].tobytes(), tmp_path / "rig" / "a.jpg"
    file.parent.mkdir()
    exif, counts = (name + bytes(300) for name in (b"Exif\0\0", b"FLIR\0\1\0\0"))
    segments = [b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in (exif, counts)]
    for kept in (segments[:1], segments):
        file.write_bytes(jpeg[:2] + b"".join(kept) + jpeg[2:])
        np.testing.assert_array_equal(read_image(file, "thermal"), picture)
        assert len(recwarn) == len(kept) - 1
    assert str(file.parent) in str(recwarn[0].message) and "radiometric" in str(recwarn[0].message)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
@pytest.mark.parametrize("kept", [0.5, 0.98])
def test_truncated_images(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    file = write(tmp_path / f"a.{suffix}", noise)
    data = file.read_bytes()
    file.write_bytes(data + b"\0\0")
    assert read_image(file).shape == (48, 64, 3)
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=rf"a\.{suffix} is truncated"):
        read_image(file)


def test_truncated_behind_a_thumbnail(tmp_path):
    file = write(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    data = file.read_bytes()
    thumbnail = b"\xff\xd8 a small picture \xff\xd9"
    data = data[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + data[2:]
    file.write_bytes(data)
    assert read_image(file).shape == (48, 64, 3)
    file.write_bytes(data[:-100])
    with pytest.raises(ValueError, match="truncated"):
        read_image(file)


def test_missing_empty_and_foreign_files(tmp_path):
    file = tmp_path / "a.jpg"
    with pytest.raises(ValueError, match=r"cannot read the image .*a\.jpg: No such file"):
        read_image(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.jpg is empty \(0 bytes\)"):
        read_image(file)
    file.write_bytes(b"these are words")
    with pytest.raises(ValueError, match=r"a\.jpg is not a readable image \(15 bytes\)"):
        read_image(file)


# name, frames, modality, present, annotated, first box
REAL_SEQUENCES = [
    ("rgbt/VTUAV/bus1_sample", 101, "thermal", 11, 11, [292.5, 47, 33, 41.5]),
    ("rgbd/DepthTrack/mug_indoor", 101, "depth", 60, 101, [179.1, 310.2, 48.8, 46.2]),
    ("rgbe/VisEvent/bag_simulated", 80, "event", 80, 80, [292.23, 128.36, 145.96, 132.47]),
    ("rgb/VOT/bag", 196, "rgb", 196, 196, [292.23, 128.36, 145.96, 132.47]),
    ("rgb/GOT-10k/val/GOT-10k_Val_900001", 50, "rgb", 50, 50, [633, 242, 42.338, 81.074]),
]


@pytest.mark.skipif(not REAL.is_dir(), reason="the sample sequences (../shared/data) are not here")
@pytest.mark.parametrize(("name", "count", "modality", "present", "annotated", "box"), REAL_SEQUENCES)
def test_real_sequences(name, count, modality, present, annotated, box):
    sequence = open_sequence(REAL / name)
    assert (len(sequence), sequence.modality) == (count, modality)
    assert (sequence.present.sum(), sequence.annotated.sum()) == (present, annotated)
    np.testing.assert_allclose(sequence.boxes_xywh[0], box, atol=1e-9)
    last = sequence.read(count - 1)
    assert last["rgb"].ndim == 3 and all(image.shape[:2] == last["rgb"].shape[:2] for image in last.values())


@pytest.mark.skipif(not REAL.is_dir(), reason="the sample sequences (../shared/data) are not here")
def test_real_data_as_one_dataset():
    assert len(open_dataset(REAL)) == 5
