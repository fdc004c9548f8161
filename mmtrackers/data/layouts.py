"""How the public sets lie on disk: two tables and no code.

`LAYOUTS` says what the folder of one sequence looks like, `DATASETS` where a set's sequences and splits are. A new set
is one more row. Layouts, delimiters and the polarity of the flags are those of the sets as distributed, cross-checked
with the readers in jiawen-zhu/ViPT (LasHeR, VisEvent, DepthTrack), Event-AHU/COESOT (COESOT, FE108), zhang-pengyu/HMFT
(VTUAV), visionml/pytracking (LaSOT, TrackingNet, GOT-10k, COCO, UAV123, NFS, OTB) and got-10k/toolkit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from . import special
from .annotations import read_boxes, read_nfs_boxes


@dataclass(frozen=True)
class Layout:
    """One form in which a sequence may lie on disk.

    File and folder names are relative to the sequence's folder; `{name}` stands for the folder's own name.

    Args:
        name (`str`): the sets that have this form.
        streams (`dict[str, tuple[str, ...]]`): modality -> its folder, with alternatives; "" = the sequence's folder
            itself. All of them must exist for the layout to be recognized. Images of any kind count, sorted naturally.
        optional (`dict[str, tuple[str, ...]]`): streams that may be there as well.
        boxes, second_boxes (`tuple[str, ...]`): annotation files of the RGB and of the second stream; the first that
            exists is read. Numbers may be parted by comma, tab, space or semicolon.
        required (`tuple[str, ...]`): files of which one must exist for the layout to be recognized.
        flags (`dict[str, tuple[int, ...]]`): presence files -> the values that mean **present**; files that lack are
            skipped. Their numbers are kept in `Sequence.extras` under the file's stem.
        numbers (`tuple[str, ...]`): further files of one number per frame that are kept there.
        steps (`tuple[int, ...]`): permitted distances between annotated frames, beside one line per frame.
        cut (`bool`): frames behind the last annotated one do not belong to the sequence.
        min_side (`float`): pixels; boxes with a smaller side are not trained on.
        parse (`Callable`): reads a box file: path -> [N, 4] float64 x, y, w, h.
    """

    name: str
    streams: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    boxes: tuple[str, ...] = ("groundtruth.txt",)
    second_boxes: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    flags: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    cut: bool = False
    min_side: float = 0.0
    parse: Callable[[Path], np.ndarray] = field(default=read_boxes, repr=False)


_OWN_BOXES = ("groundtruth.txt", "groundtruth_rect.txt", "init.txt")
_COVERED = {"absence.label": (0,), "cover.label": tuple(range(1, 9))}

RGBT = Layout("LasHeR, RGBT234, RGBT210", {"rgb": ("visible",), "thermal": ("infrared",)},
              boxes=("visible.txt", "init.txt"), second_boxes=("infrared.txt",))
VTUAV = Layout("VTUAV", {"rgb": ("rgb",), "thermal": ("ir", "ir_gray")}, boxes=("rgb.txt", "groundtruth.txt"),
               second_boxes=("ir.txt", "ir_gray.txt"), steps=(10,))
GTOT = Layout("GTOT", {"rgb": ("v",), "thermal": ("i",)}, boxes=("groundTruth_v.txt",),
              second_boxes=("groundTruth_i.txt",), parse=partial(read_boxes, corners=True))
VISEVENT = Layout("VisEvent", {"rgb": ("vis_imgs",), "event": ("event_imgs",)}, flags={"absent_label.txt": (1,)},
                  min_side=5.0)
COESOT = Layout("COESOT", {"rgb": ("{name}_aps",), "event": ("{name}_dvs",)}, flags={"absent.txt": (1,)})
FE108 = Layout("FE108", {"rgb": ("img",), "event": ("stack",)}, boxes=("groundtruth_rect.txt",))
RGBD = Layout("DepthTrack, CDTB, VOT-RGBD", {"rgb": ("color",), "depth": ("depth",)}, numbers=("anchor.value",),
              cut=True, min_side=10.0)
VOT = Layout("VOT", {"rgb": ("color",)}, numbers=("anchor.value",))
LASOT = Layout("LaSOT", {"rgb": ("img",)}, required=("groundtruth.txt",),
               flags={"full_occlusion.txt": (0,), "out_of_view.txt": (0,)})
OTB = Layout("OTB", {"rgb": ("img", "jpg")}, boxes=("groundtruth_rect.txt", "groundtruth_rect.1.txt"),
             required=("groundtruth_rect.txt", "groundtruth_rect.1.txt"), cut=True)
GOT10K = Layout("GOT-10k", {"rgb": ("",)}, required=("absence.label", "cover.label"), flags=_COVERED)
TNL2K = Layout("TNL2K", {"rgb": ("imgs",)})
TRACKINGNET = Layout("TrackingNet", {"rgb": ("",)}, boxes=("../../anno/{name}.txt",),
                     required=("../../anno/{name}.txt",))
NFS_CONVERTED = Layout("NFS as pytracking has it", {"rgb": ("",)}, required=("../../anno/nfs_{name}.txt",),
                       boxes=("../../anno/nfs_{name}.txt",), cut=True)
NFS = Layout("NFS", {"rgb": ("30/{name}",)}, boxes=("30/{name}.txt",), cut=True, parse=read_nfs_boxes)
UAV123 = Layout("UAV123", {"rgb": ("",)}, boxes=("../../../anno/UAV123/{name}.txt",),
                required=("../../../anno/UAV123/{name}.txt",), cut=True)

# The first row that fits is taken: the particular ones stand before the general ones.
LAYOUTS: tuple[Layout, ...] = (
    RGBT, VTUAV, GTOT, VISEVENT, COESOT, FE108, RGBD,
    Layout("VOT-RGBT", {"rgb": ("color",), "thermal": ("ir",)}),
    VOT, LASOT, OTB, TNL2K, NFS, GOT10K, TRACKINGNET, NFS_CONVERTED, UAV123,
    Layout("own folders", {"rgb": ("rgb",)}, boxes=_OWN_BOXES,
           optional={"thermal": ("thermal",), "depth": ("depth",), "event": ("event",)}),
    Layout("own folder", {"rgb": ("",)}, boxes=_OWN_BOXES),
)


@dataclass(frozen=True)
class Split:
    """Which sequences of a set belong to a split.

    Args:
        folders (`tuple[str, ...]`): where they lie below the set's root, as glob patterns; where none exists, the root
            itself is searched.
        lists (`tuple[str, ...]`): files of names in the set's own download; the first that exists decides.
        names (`tuple[str, ...]`): else, lists that come with the package (`data/lists/<name>.txt`), together. They
            decide only if `folders` do not tell the split (always=False), or whenever no list was found (True).
        without (`tuple[str, ...]`): the package's lists of names that are left out, likewise.
        pattern (`str`): how a name is made of an entry of the package's lists.
        drop (`tuple[str, ...]`): paths of sequences that are never taken (their last components).
    """

    folders: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    always: bool = False
    pattern: str = "{}"
    drop: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetRow:
    """One public set, by the title that papers give it.

    Args:
        layouts (`tuple[Layout, ...]`): forms of its sequences' folders; the first that fits is taken.
        attributes (`str`): list of the package with `name ATTRIBUTE ...` per line.
        entries (`Callable`): entries of folders -> of sequences, for sets where these differ (see `special`).
        build (`Callable`): (root, split, stamps) -> sequences, for a set without any folder per sequence.
    """

    title: str
    layouts: tuple[Layout, ...]
    splits: Mapping[str, Split]
    attributes: str = ""
    entries: Callable | None = field(default=None, repr=False)
    build: Callable | None = field(default=None, repr=False)


_ALL = {"test": Split()}
_VOT_LIST = ("list.txt", "sequences/list.txt")
_GOT10K_TRAIN = {"folders": ("train",), "always": True, "pattern": "GOT-10k_Train_{:0>6}"}
# Three sequences come twice in VTUAV's archives.
_VTUAV_TWICE = tuple(f"train_ST_004/pedestrian_{number}" for number in ("040", "042", "043"))

DATASETS: Mapping[str, DatasetRow] = {
    "lasher": DatasetRow("LasHeR", (RGBT,), {
        "train": Split(("trainingset",), without=("lasher_test",)),
        "test": Split(("testingset",), names=("lasher_test",)),
        "train_882": Split(("trainingset",), without=("lasher_test", "lasher_val"), always=True),
        "val": Split(("trainingset",), names=("lasher_val",), always=True),
    }, attributes="lasher_attributes"),
    "rgbt234": DatasetRow("RGBT234", (RGBT,), _ALL, attributes="rgbt234_attributes"),
    "rgbt210": DatasetRow("RGBT210", (RGBT,), _ALL),
    "gtot": DatasetRow("GTOT", (GTOT,), _ALL),
    "vtuav": DatasetRow("VTUAV", (VTUAV,), {
        "train_short": Split(("train_ST*", "train*/train_ST*", "train/ST*"), drop=_VTUAV_TWICE,
                             names=("vtuav_short_train", "vtuav_short_val")),
        "train_long": Split(("train_LT*", "train*/train_LT*", "train/LT*"),
                            names=("vtuav_long_train", "vtuav_long_val")),
        "test_short": Split(("test_ST*", "test*/test_ST*", "test/ST*")),
        "test_long": Split(("test_LT*", "test*/test_LT*", "test/LT*")),
        "val_short": Split(("train_ST*", "train*/train_ST*", "train/ST*"), drop=_VTUAV_TWICE,
                           names=("vtuav_short_val",), always=True),
        "val_long": Split(("train_LT*", "train*/train_LT*", "train/LT*"), names=("vtuav_long_val",), always=True),
    }),
    "visevent": DatasetRow("VisEvent", (VISEVENT,), {
        "train": Split(("train",), lists=("trainlist.txt", "train/trainlist.txt")),
        "test": Split(("test",), lists=("testlist.txt", "test/testlist.txt")),
    }),
    "coesot": DatasetRow("COESOT", (COESOT,), {
        "train": Split(("train",), lists=("train/list.txt",)),
        "train_800": Split(("train",), without=("coesot_val",), always=True),
        "val": Split(("train",), names=("coesot_val",), always=True),
        # The set's own list has one name more than its toolkit evaluates.
        "test": Split(("test",), lists=("test/list.txt",), drop=("dvSave-2022_03_21_11_09_50",)),
    }),
    "fe108": DatasetRow("FE108", (FE108,), {
        "train": Split(("train",), lists=("train/list.txt", "train.txt")),
        "test": Split(("test",), lists=("test/list.txt", "test.txt")),
    }),
    "depthtrack": DatasetRow("DepthTrack", (RGBD,), {
        "train": Split(("train",), names=("depthtrack_train", "depthtrack_val")),
        "train_146": Split(("train",), names=("depthtrack_train",), always=True),
        "val": Split(("train",), names=("depthtrack_val",), always=True),
        "test": Split(("test", "sequences"), lists=_VOT_LIST, names=("depthtrack_test",)),
    }),
    "cdtb": DatasetRow("CDTB", (RGBD,), {"test": Split(("sequences",), lists=_VOT_LIST)}),
    "vot22rgbd": DatasetRow("VOT22-RGBD", (RGBD,), {"test": Split(("sequences",), lists=_VOT_LIST)}),
    "lasot": DatasetRow("LaSOT", (LASOT,), {
        "train": Split(without=("lasot_test",)), "test": Split(names=("lasot_test",)),
    }),
    "lasot_ext": DatasetRow("LaSOT_ext", (LASOT,), _ALL),
    "trackingnet": DatasetRow("TrackingNet", (TRACKINGNET,), {
        "train": Split(("TRAIN_*/frames",)), "test": Split(("TEST/frames",)),
        # What several trackers train on: the first four of the twelve parts.
        "train_0_3": Split(("TRAIN_[0-3]/frames",)),
    }),
    "got10k": DatasetRow("GOT-10k", (GOT10K,), {
        "train": Split(("train",), lists=("train/list.txt",)),
        "val": Split(("val",), lists=("val/list.txt",)),
        "test": Split(("test",), lists=("test/list.txt",)),
        "train_7934": Split(without=("got10k_val",), **_GOT10K_TRAIN),
        "train_1401": Split(names=("got10k_val",), **_GOT10K_TRAIN),
        "train_vot": Split(without=("got10k_val", "got10k_vot_exclude"), **_GOT10K_TRAIN),
        "val_vot": Split(names=("got10k_val",), without=("got10k_vot_exclude",), **_GOT10K_TRAIN),
    }),
    "tnl2k": DatasetRow("TNL2K", (TNL2K,), {
        "train": Split(("train", "TNL2K_train*", "*/TNL2K_train*")), "test": Split(("test", "TNL2K_test*")),
    }),
    "uav123": DatasetRow("UAV123", (UAV123,), {"test": Split(("data_seq/UAV123",))}, entries=special.uav123_targets),
    "nfs": DatasetRow("NFS", (NFS, NFS_CONVERTED), {"test": Split(("sequences",))}),
    "otb100": DatasetRow("OTB100", (OTB,), _ALL, entries=special.otb_targets),
    "coco": DatasetRow("COCO", (), {"train2017": Split(), "val2017": Split()}, build=special.coco_stills),
}
