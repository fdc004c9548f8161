"""Public sets by name: a generated tree in each one's layout, with its traps; splits, lists and attributes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mmtrackers.data import open_dataset
from mmtrackers.data.datasets import DATASETS
from mmtrackers.data.special import packaged_list

BOX, GONE = "10,20,30,40\n", "0,0,0,0\n"
FOUR = BOX * 4


def grow(root: Path, files: dict[str, str | list[str]]) -> Path:
    """Text files, and folders with empty pictures of the given names (listing never looks into pictures)."""
    for name, content in files.items():
        if isinstance(content, str):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
        else:
            (root / name).mkdir(parents=True, exist_ok=True)
            for picture in content:
                (root / name / picture).touch()
    return root


def numbered(pattern: str, count: int = 4, first: int = 1) -> list[str]:
    return [pattern % k for k in range(first, first + count)]


def rgbt(where: str, boxes: str = FOUR) -> dict:
    return {f"{where}/visible": numbered("v%06d.jpg"), f"{where}/infrared": numbered("i%06d.jpg"),
            f"{where}/init.txt": boxes, f"{where}/visible.txt": boxes, f"{where}/infrared.txt": FOUR}


def vtuav(where: str) -> dict:
    return {f"{where}/rgb": numbered("%06d.jpg", 21, 0), f"{where}/ir": numbered("%06d.jpg", 21, 0),
            f"{where}/rgb.txt": "1 2 3 4\n5 6 7 8\n0 0 0 0\n", f"{where}/ir.txt": "1 2 3 4\n" * 3}


def visevent(where: str, flags: str = "1\n0\n1\n1\n") -> dict:
    names = ["f_9.bmp", "f_10.bmp", "f_120.bmp", "f_121.bmp"]
    return {f"{where}/vis_imgs": names, f"{where}/event_imgs": names, f"{where}/absent_label.txt": flags,
            f"{where}/groundtruth.txt": "10.1234,20.0000,30.0000,40.0000\nNaN,NaN,NaN,NaN\n" + BOX * 2}


def coesot(where: str) -> dict:
    name = where.split("/")[-1]
    return {f"{where}/{name}_aps": numbered("frame%04d.png"), f"{where}/{name}_dvs": numbered("frame%04d.png"),
            f"{where}/{name}_voxel": ["frame0001.mat"], f"{where}/groundtruth.txt": FOUR,
            f"{where}/absent.txt": "1\n1\n0\n1\n", f"{where}/start_end_index.txt": "1 4"}


def rgbd(where: str, boxes: str = BOX + "nan,nan,nan,nan\n10 20 30 40\n" + BOX, **files: str) -> dict:
    return {f"{where}/color": numbered("%08d.jpg"), f"{where}/depth": numbered("%08d.png"),
            f"{where}/groundtruth.txt": boxes} | {f"{where}/{name}": text for name, text in files.items()}


def lasot(where: str) -> dict:
    return {f"{where}/img": numbered("%08d.jpg"), f"{where}/groundtruth.txt": FOUR, f"{where}/nlp.txt": "a cat",
            f"{where}/full_occlusion.txt": "0,0,1,0\n", f"{where}/out_of_view.txt": "0,1,0,0"}


def got10k(where: str, boxes: str = FOUR) -> dict:
    flags = {f"{where}/absence.label": "0\n1\n0\n0\n", f"{where}/cover.label": "8\n0\n0\n1\n"}
    return {f"{where}": numbered("%08d.jpg"), f"{where}/groundtruth.txt": boxes} | (flags if boxes == FOUR else {})


GTOT = {"a/v": numbered("%05d.png"), "a/i": numbered("%05d.png"), "a/init.txt": "1\t2\t3\t4\n",
        "a/groundTruth_v.txt": "40 60 10 20\n10 60 40 20\n" * 2, "a/groundTruth_i.txt": "11 21 41 61\n" * 4}
LASOT_TEST = {}
for name in packaged_list("lasot_test"):
    LASOT_TEST |= lasot(f"{name.split('-')[0]}/{name}")
UAV = {f"data_seq/UAV123/{line.split()[1]}": [] for line in packaged_list("uav123")}
UAV |= {f"anno/UAV123/{line.split()[0]}.txt": BOX + "NaN,NaN,NaN,NaN\n" for line in packaged_list("uav123")}
for line in packaged_list("uav123"):
    UAV[f"data_seq/UAV123/{line.split()[1]}"] += numbered("%06d.jpg", 3, int(line.split()[2]))
OTB = {"David/img": numbered("%04d.jpg", 5, 298), "David/groundtruth_rect.txt": "10,20,30,40\n" * 2,
       "Diving/img": numbered("%04d.jpg", 9), "Diving/groundtruth_rect.txt": "10 20 30 40\n" * 4,
       "Jogging/img": numbered("%04d.jpg"), "Jogging/groundtruth_rect.1.txt": "10\t20\t30\t40\n" * 4,
       "Jogging/groundtruth_rect.2.txt": "11,20,30,40\n" * 4,
       "Tiger1/img": numbered("%04d.jpg", 9), "Tiger1/groundtruth_rect.txt": "0,0,0,0\n" * 5 + FOUR}
COCO = {"images/train2017": ["000000000007.jpg"], "annotations/instances_train2017.json": json.dumps({
    "images": [{"id": 7, "file_name": "000000000007.jpg"}], "annotations": [
        {"id": 1, "image_id": 7, "iscrowd": 0, "bbox": [1.5, 2, 3, 4]},
        {"id": 2, "image_id": 7, "iscrowd": 1, "bbox": [1, 2, 3, 4]},
        {"id": 3, "image_id": 7, "iscrowd": 0, "bbox": [1, 2, 0, 4]}]})}

# set, split, tree -> names, presence flags of the first (as digits), and (frame, file name, box) of one of its frames
ROWS = {
    "lasher-test": ("lasher", "test", rgbt("testingset/b10", BOX + GONE + BOX * 2) | rgbt("testingset/b9")
                    | rgbt("trainingset/c"), ["b9", "b10"], "1111", (0, "v000001.jpg", [10, 20, 30, 40])),
    "lasher-train": ("lasher", "train", rgbt("testingset/b") | rgbt("trainingset/c", BOX + GONE + BOX * 2),
                     ["c"], "1011", (1, "v000002.jpg", [0, 0, 0, 0])),
    "lasher-train_882": ("lasher", "train_882", rgbt("trainingset/c") | rgbt("trainingset/boywalkinginsnow3"),
                        ["c"], "1111", (0, "v000001.jpg", [10, 20, 30, 40])),
    "rgbt234": ("rgbt234", None, rgbt("child1"), ["child1"], "1111", (3, "v000004.jpg", [10, 20, 30, 40])),
    "rgbt210": ("rgbt210", "test", {"a/visible": numbered("%d.jpg", 11), "a/infrared": numbered("%d.jpg", 11, 5),
                                    "a/init.txt": BOX * 11}, ["a"], "1" * 11, (9, "10.jpg", [10, 20, 30, 40])),
    "gtot": ("gtot", None, GTOT, ["a"], "1111", (1, "00002.png", [10, 20, 30, 40])),
    "vtuav-short": ("vtuav", "test_short", vtuav("test_ST_001/car_1") | vtuav("test_LT_001/car_2"), ["car_1"],
                    "100000000010000000000", (10, "000010.jpg", [5, 6, 7, 8])),
    "vtuav-twice": ("vtuav", "train_short", vtuav("train_ST_004/pedestrian_042")
                    | vtuav("train_ST_006/pedestrian_042"), ["pedestrian_042"], "100000000010000000000",
                    (20, "000020.jpg", [0, 0, 0, 0])),
    "visevent": ("visevent", "test", visevent("test/b") | visevent("test/a") | visevent("train/c")
                 | {"testlist.txt": "b\r\na\r\n"}, ["b", "a"], "1011", (2, "f_120.bmp", [10, 20, 30, 40])),
    "coesot": ("coesot", "test", coesot("test/dvSave-1") | coesot("test/dvSave-2022_03_21_11_09_50")
               | {"test/list.txt": "dvSave-1\ndvSave-2022_03_21_11_09_50\n"}, ["dvSave-1"], "1101",
               (3, "frame0004.png", [10, 20, 30, 40])),
    "fe108": ("fe108", "train", {"train/a/img": numbered("%04d.jpg"), "train/a/stack": numbered("%04d.png"),
                                 "train/a/groundtruth_rect.txt": FOUR}, ["a"], "1111",
              (0, "0001.jpg", [10, 20, 30, 40])),
    "depthtrack-partly-annotated": ("depthtrack", "train", rgbd("train/toy07", BOX + GONE), ["toy07"], "10",
                                    (1, "00000002.jpg", [0, 0, 0, 0])),
    "depthtrack-workspace": ("depthtrack", "test", rgbd("sequences/b") | rgbd("sequences/a")
                             | {"sequences/list.txt": "b\na\n"}, ["b", "a"], "1011",
                             (2, "00000003.jpg", [10, 20, 30, 40])),
    "cdtb": ("cdtb", "test", rgbd("a", sequence="fps=30\n") | {"list.txt": "a\n"}, ["a"], "1011",
             (0, "00000001.jpg", [10, 20, 30, 40])),
    "vot22rgbd": ("vot22rgbd", None, rgbd("sequences/a", "1,1,3,1,3,4,1,4\n0\n" + BOX * 2,
                                          **{"anchor.value": "1\n0\n0\n-1\n"}), ["a"], "1011",
                  (0, "00000001.jpg", [1, 1, 2, 3])),
    "lasot-test": ("lasot", "test", LASOT_TEST | lasot("cat/cat-2"), packaged_list("lasot_test"), "1001",
                   (3, "00000004.jpg", [10, 20, 30, 40])),
    "lasot-train": ("lasot", "train", lasot("cat/cat-2") | lasot("cat/cat-10") | lasot("cat/cat-1"),
                    ["cat-2", "cat-10"], "1001", (3, "00000004.jpg", [10, 20, 30, 40])),
    "lasot_ext": ("lasot_ext", None, lasot("atv/atv-1"), ["atv-1"], "1001", (0, "00000001.jpg", [10, 20, 30, 40])),
    "trackingnet": ("trackingnet", "train", {
        "TRAIN_10/frames/y_0": numbered("%d.jpg", 12, 0), "TRAIN_10/anno/y_0.txt": BOX * 12,
        "TRAIN_2/frames/x_0": numbered("%d.jpg", 12, 0), "TRAIN_2/anno/x_0.txt": BOX * 12,
        "TEST/frames/z_0": ["0.jpg"], "TEST/anno/z_0.txt": BOX,
    }, ["x_0", "y_0"], "1" * 12, (10, "10.jpg", [10, 20, 30, 40])),
    "trackingnet-test": ("trackingnet", "test", {
        "TEST/frames/z_0": numbered("%d.jpg", 12, 0), "TEST/anno/z_0.txt": BOX,
    }, ["z_0"], "1" + "0" * 11, (0, "0.jpg", [10, 20, 30, 40])),
    "got10k-val": ("got10k", "val", got10k("val/b") | got10k("val/a") | {"val/list.txt": "b\na\n"}, ["b", "a"],
                   "1001", (0, "00000001.jpg", [10, 20, 30, 40])),
    "got10k-test": ("got10k", "test", got10k("test/a", BOX), ["a"], "1000", (0, "00000001.jpg", [10, 20, 30, 40])),
    "got10k-train_vot": ("got10k", "train_vot", got10k("train/GOT-10k_Train_000003") | got10k(
        f"train/GOT-10k_Train_{packaged_list('got10k_val')[0]:0>6}") | got10k(
        f"train/GOT-10k_Train_{packaged_list('got10k_vot_exclude')[0]:0>6}"), ["GOT-10k_Train_000003"], "1001",
        (0, "00000001.jpg", [10, 20, 30, 40])),
    "tnl2k": ("tnl2k", "test", {"TNL2K_test_subset/a/imgs": ["2.png", "10.jpg", "1.jpeg"],
                                "TNL2K_test_subset/a/groundtruth.txt": BOX * 2 + GONE}, ["a"], "110",
              (2, "10.jpg", [0, 0, 0, 0])),
    "uav123": ("uav123", None, UAV, [line.split()[0] for line in packaged_list("uav123")], "10",
               (0, "000001.jpg", [10, 20, 30, 40])),
    "nfs": ("nfs", None, {"a/30/a": numbered("%05d.jpg", 5), "a/30/a.txt": "".join(
        f'0 {k} 20 {k + 30} 60 {k} 0 0 0 "ball"\n' for k in range(32))}, ["a"], "1111",
        (3, "00004.jpg", [24, 20, 30, 40])),
    "nfs-converted": ("nfs", None, {"sequences/a": numbered("%05d.jpg", 5), "anno/nfs_a.txt": "10\t20\t30\t40\n" * 4},
                      ["a"], "1111", (3, "00004.jpg", [10, 20, 30, 40])),
    "otb100": ("otb100", None, OTB, ["David", "Diving", "Jogging_1", "Jogging_2", "Tiger1"], "11",
               (1, "0301.jpg", [10, 20, 30, 40])),
    "coco": ("coco", "train2017", COCO, ["000000000007_1"], "1", (0, "000000000007.jpg", [1.5, 2, 3, 4])),
}


@pytest.mark.parametrize("row", ROWS)
def test_public_sets(tmp_path, row):
    dataset, split, files, names, present, (frame, file, box) = ROWS[row]
    sequences = open_dataset(grow(tmp_path / "root", files), dataset=dataset, split=split)
    assert [sequence.name for sequence in sequences] == names == sequences.names
    first = sequences[0]
    assert "".join(map(str, first.present.astype(int))) == present
    assert len(first) == len(present) and first.dataset == dataset and first.layout == DATASETS[dataset].title
    assert first.frames["rgb"][frame].name == file and first.frames["rgb"][frame].is_file()
    np.testing.assert_allclose(first.boxes_xywh[frame], box, atol=1e-12)


def test_every_set_is_tested():
    assert {row[0] for row in ROWS.values()} == set(DATASETS)


def test_what_else_a_sequence_carries(tmp_path):
    sequence = open_dataset(grow(tmp_path / "a", ROWS["rgbt234"][2]), dataset="rgbt234")[0]
    assert sequence.attributes == ("CM", "DEF", "HO", "LR", "MB") and sequence.second_boxes_xywh.shape == (4, 4)
    sequence = open_dataset(grow(tmp_path / "b", ROWS["vot22rgbd"][2]), dataset="vot22rgbd")[0]
    assert sequence.extras["anchor"].tolist() == [1, 0, 0, -1]
    sequence = open_dataset(grow(tmp_path / "c", ROWS["got10k-val"][2]), dataset="got10k", split="val")[0]
    assert sequence.extras["cover"].tolist() == [8, 0, 0, 1] and sequence.extras["absence"].tolist() == [0, 1, 0, 0]
    sequence = open_dataset(grow(tmp_path / "g", visevent("test/a")), dataset="visevent", split="test")[0]
    assert sequence.extras["absent_label"].tolist() == [1, 0, 1, 1] and not sequence.present[1]
    sequence = open_dataset(grow(tmp_path / "d", GTOT), dataset="gtot")[0]
    assert sequence.extras == {}
    assert sequence.second_boxes_xywh[0].tolist() == [11, 21, 30, 40]
    otb = open_dataset(grow(tmp_path / "e", OTB), dataset="otb100")
    assert {s.name: (len(s), s.frames["rgb"][0].name, s.boxes_xywh[0, 0]) for s in otb} == {
        "David": (2, "0300.jpg", 10), "Diving": (4, "0001.jpg", 10), "Jogging_1": (4, "0001.jpg", 10),
        "Jogging_2": (4, "0001.jpg", 11), "Tiger1": (4, "0006.jpg", 10)}
    uav = {s.name: s.frames["rgb"] for s in open_dataset(grow(tmp_path / "f", UAV), dataset="uav123")}
    assert [f.name for f in uav["car1_2"]] == ["000751.jpg", "000752.jpg"] and uav["car1_2"][0].parent.name == "car1"


FLAT = rgbt("c") | rgbt("10runone")
FAULTS = {
    "unknown set": ("lash", None, {}, {}, "dataset 'lash': expected one of lasher, rgbt234"),
    "split needed": ("lasher", None, {}, {}, "LasHeR has the splits train, test, train_882, val; got split=None"),
    "unknown split": ("gtot", "train", {}, {}, "GTOT has the splits test; got split='train'"),
    "split without set": (None, "test", {}, {}, "split='test' needs dataset="),
    "empty": ("lasher", "test", {}, {}, r"no sequence of LasHeR below .*<sequence>/visible/ \+ <sequence>/infrared/"),
    "a stream lacks": ("lasher", "test", {"testingset/a/visible": ["1.jpg"]}, {}, "no thermal frames: .*infrared/ is"),
    "frames lack": ("lasher", "test", {"testingset/a/visible": [], "testingset/a/infrared": []}, {}, "no images in"),
    "flat and incomplete": ("lasher", "test", FLAT, {}, "244 listed sequences are not below .*: 11leftboy, 11runtwo"),
    "nothing left": ("lasher", "val", rgbt("trainingset/c"), {}, "97 listed sequences are not below"),
    "all left out": ("lasot", "train", lasot("cat/cat-1"), {}, "none of the 1 sequences below .* LaSOT's 'train'"),
    "split cannot be told": ("visevent", "test", visevent("a"), {}, "does not tell which sequences of VisEvent are "
                             "'test': expected test or testlist.txt"),
    "listed but not there": ("visevent", "test", visevent("test/a") | {"testlist.txt": "a\nb\n"}, {},
                             "1 listed sequences are not below .*: b"),
    "asked but not there": ("gtot", None, GTOT, {"names": ["x"]}, "1 listed sequences are not below .*: x"),
    "no COCO": ("coco", "train2017", {}, {}, "COCO: expected .*instances_train2017.json and the pictures in"),
    "COCO has no x": ("coco", "train2017", COCO, {"names": ["x"]}, "1 listed sequences are not below .*: x"),
    "COCO has RGB alone": ("coco", "train2017", COCO, {"modality": "thermal"}, "has no thermal frames, only rgb"),
    "UAV123 folder lacks": ("uav123", None, {k: v for k, v in UAV.items() if k != "data_seq/UAV123/bike1"}, {},
                            "UAV123: the folder bike1/ of sequence 'bike1' is missing"),
    "OTB begins late": ("otb100", None, OTB | {"David/img": numbered("%04d.jpg", 5)}, {}, "2 boxes for 0 frames"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_sets(tmp_path, name):
    dataset, split, files, options, message = FAULTS[name]
    (tmp_path / "root").mkdir()
    with pytest.raises(ValueError, match=message):
        open_dataset(grow(tmp_path / "root", files), dataset=dataset, split=split, **options)


def test_a_split_folder_itself_may_be_the_root(tmp_path):
    root = grow(tmp_path, ROWS["lasher-test"][2]) / "testingset"
    assert open_dataset(root, dataset="lasher", split="test").names == ["b9", "b10"]
    assert open_dataset(root, ["b10"], dataset="lasher", split="test").names == ["b10"]
    assert open_dataset(root, modality="rgb", dataset="lasher", split="test")[0].modality == "rgb"


def test_packaged_lists():
    sizes = {"lasher_test": 245, "lasher_val": 97, "lasher_attributes": 1224, "rgbt234_attributes": 234,
             "vtuav_short_train": 157, "vtuav_short_val": 50, "vtuav_long_train": 33, "vtuav_long_val": 10,
             "coesot_val": 27, "depthtrack_train": 146, "depthtrack_val": 6, "depthtrack_test": 50, "lasot_test": 280,
             "got10k_val": 1401, "got10k_vot_exclude": 1000, "uav123": 123}
    assert {name: len(set(packaged_list(name))) for name in sizes} == sizes
    folder = Path(open_dataset.__code__.co_filename).parent / "lists"
    assert {file.stem for file in folder.glob("*.txt")} == set(sizes)
    assert all(re.match(r"# .+/", file.read_text()) for file in folder.glob("*.txt")), "a list without its source"
    assert sum(file.stat().st_size for file in folder.glob("*.txt")) < 100_000
    numbers = [set(packaged_list(name)) for name in ("got10k_val", "got10k_vot_exclude")]
    assert 9335 - len(numbers[0] | numbers[1]) == 7086 and len(numbers[0] - numbers[1]) == 1249
