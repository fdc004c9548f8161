"""Every protocol against the numbers of the toolkit that it follows (fixtures `metrics-*`), and its quirks."""

import dataclasses

import numpy as np
import pytest
from parity_tools import fixtures_folder, load_case

from mmtrackers.evaluation import (
    PROTOCOLS,
    EvaluationResult,
    RawResult,
    Truth,
    get_protocol,
    metrics,
    one_pass,
    score,
)

TOLERANCE = 1e-5


def case(name):
    if not (fixtures_folder() / f"metrics-{name}.json").is_file():
        pytest.skip(f"no fixture metrics-{name} in {fixtures_folder()}")
    description, tensors = load_case(f"metrics-{name}")
    return description, {key: tensor.numpy() for key, tensor in tensors.items()}


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def ltrb_to_xywh(corners):
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


# ------------------------------------------------------------------------------------------------------ the toolkits


@pytest.mark.parametrize(
    ("name", "protocol", "truth", "second"),
    [
        ("rgbt-lasher", "lasher", "gt", None),
        ("rgbt-rgbt234", "rgbt234", "gt_visible", "gt_infrared"),
        ("rgbt-rgbt210", "rgbt210", "gt", None),
        ("rgbt-gtot", "gtot", "gt_v_ltrb", "gt_i_ltrb"),
    ],
)
def test_thermal_sets(name, protocol, truth, second):
    about, tensors = case(name)
    attributes = about.get("attributes", {})
    form = ltrb_to_xywh if truth.endswith("ltrb") else np.asarray
    truths = [
        Truth(s, form(tensors[f"{s}.{truth}"]), second_boxes_xywh=form(tensors[f"{s}.{second}"]) if second else None,
              attributes=tuple(a for a, names in attributes.items() if s in names))
        for s in about["sequences"]
    ]  # fmt: skip
    found = [RawResult(tensors[f"{s}.pred"]) for s in about["sequences"]]
    result = score(protocol, truths, found)
    measured = get_protocol(protocol).measure(truths, found)
    for metric in get_protocol(protocol).metrics:
        same(result.scores[metric.name], about["expected"][metric.name])
        curves = tensors[f"curve.{metric.name}"]
        same(result.curves[metric.curve].y, curves.mean(0))
        if protocol != "gtot":
            same(measured.hits[metric.curve] / measured.frames[:, None], curves)
        for attribute in attributes:
            expected = about["expected"][f"{metric.name}_attr_{attribute}"]
            same(result.attributes[attribute].scores[metric.name], expected)


@pytest.mark.parametrize("name", ["visevent", "coesot"])
def test_event_sets(name, monkeypatch):
    about, tensors = case(f"event-{name}")
    hidden_value = 1 if name == "visevent" else 0
    truths = [Truth(s, tensors[f"{s}.gt"], tensors[f"{s}.absent"] != hidden_value) for s in about["sequences"]]
    success = {}
    for tracker in about["trackers"]:
        raw = [RawResult(tensors[f"{tracker}.{s}.pred"]) for s in about["sequences"]]
        result, measured = score(name, truths, raw), get_protocol(name).measure(truths, raw)
        for metric in ("SR", "PR", "NPR"):
            same(result.scores[metric], about["expected"][tracker][metric])
        same(np.mean(result.curves["precision"].y), about["expected"][tracker]["PR_curve_mean"])
        same(np.mean(result.curves["normalized_precision"].y), about["expected"][tracker]["NPR_curve_mean"])
        curves = {"success": "overlap_nd0", "precision": "error_nd0", "normalized_precision": "error_nd1"}
        for ours, theirs in curves.items():
            same(measured.hits[ours] / measured.frames[:, None], tensors[f"{tracker}.curve.{theirs}"])
        success[tracker] = (measured.hits["success"] / measured.frames[:, None]).mean(1)
    difficulty = dict(zip(about["sequences"], 1 - np.mean(list(success.values()), axis=0), strict=True))
    monkeypatch.setattr(one_pass, "published_difficulty", lambda: difficulty)
    for tracker in about["trackers"]:
        raw = [RawResult(tensors[f"{tracker}.{s}.pred"]) for s in about["sequences"]]
        measured = PROTOCOLS["coesot"].measure(truths, raw)
        if name == "coesot":
            found = measured.summary(np.arange(len(truths)))["BOC"]
            same(found, about["expected"][tracker]["BOC_over_these_three"])


def test_coesot_difficulties_are_those_published():
    weights = one_pass.published_difficulty()
    assert len(weights) == 527 and weights["dvSave-2021_07_30_11_04_12"] == 0.1810103352
    truth = Truth("dvSave-2021_07_30_11_04_12", np.tile([9.0, 9, 8, 8], (5, 1)))
    same(score("coesot", [truth], [RawResult(truth.boxes_xywh)]).scores["BOC"], 0.1810103352 * 20 / 21)
    unknown = dataclasses.replace(truth, name="mine")
    assert "BOC" not in score("coesot", [unknown], [RawResult(truth.boxes_xywh)]).scores


def test_got10k():
    about, tensors = case("got10k")
    size = tuple(about["resolution"])
    truths = [Truth(s, tensors[f"{s}.gt"], tensors[f"{s}.cover"] > 0, image_size=size) for s in about["sequences"]]
    result = score("got10k", truths, [RawResult(tensors[f"{s}.pred"]) for s in about["sequences"]])
    same(result.scores["AO"], about["expected"]["AO"])
    same(result.scores["SR0.5"], about["expected"]["SR_050"])
    same(result.scores["SR0.75"], about["expected"]["SR_075"])
    same(result.curves["success"].y, tensors["curve.success_101"])
    for sequence in result.sequences:
        same(sequence.scores["AO"], about["expected"]["seq_AO"][sequence.name])


@pytest.mark.parametrize(
    ("expected", "curve", "protocol", "flags"),
    [
        ("lasot", "lasot", PROTOCOLS["lasot"], True),
        ("lasot_excl", "lasot_excl", dataclasses.replace(PROTOCOLS["lasot"], divide_by_usable=True), True),
        ("uav", "uav", PROTOCOLS["uav123"], False),
        ("nfs_or_otb", "nfs", PROTOCOLS["nfs"], False),
        ("nfs_or_otb", "nfs", PROTOCOLS["otb100"], False),
    ],
    ids=["lasot", "lasot_excl", "uav", "nfs", "otb"],
)
def test_pytracking(expected, curve, protocol, flags):
    about, tensors = case("ope")
    names = about["sequences"]
    truths = [Truth(s, tensors[f"{s}.gt"], tensors[f"{s}.target_visible"] == 1 if flags else None) for s in names]
    raw = [RawResult(tensors[f"{s}.pred"]) for s in names]
    result, measured = score(protocol, truths, raw), protocol.measure(truths, raw)
    toolkit = {"AUC": "AUC", "OP50": "OP50", "OP75": "OP75", "Pnorm": "Norm_Precision", "P": "Precision"}
    for ours, theirs in toolkit.items():
        same(result.scores[ours], about["expected"][expected][theirs] / 100)
    rows = {"success": "overlap", "precision": "center", "normalized_precision": "center_norm"}
    for ours, theirs in rows.items():
        same(measured.hits[ours] / measured.frames[:, None], tensors[f"curve.{curve}.{theirs}"])


def test_got10k_toolkit_on_otb_and_lasot():
    about, tensors = case("ope")
    expected = about["expected"]["got10k_toolkit_otb_seqc"]
    found = score("otb100_got10k", [Truth("seqc", tensors["seqc.gt"])], [RawResult(tensors["seqc.pred"])]).scores
    same([found["AUC"], found["P"]], [expected["success_score"], expected["precision"]])
    expected = about["expected"]["got10k_toolkit_lasot_seqc_nan_5_8"]
    boxes = tensors["seqc.gt"].copy()
    boxes[5:9] = np.nan
    found = score("lasot_got10k", [Truth("seqc", boxes)], [RawResult(tensors["seqc.pred"])]).scores
    same(found["AUC"], expected["success_score"])
    same([found["P"], found["Pnorm"]], [expected["precision"], expected["norm_precision_at_0_2"]])


def test_vot_long_term():
    about, tensors = case("vot-longterm")
    size, names = tuple(about["image_size"]), about["sequences"]
    truths = [Truth(s, tensors[f"{s}.gt"], image_size=size) for s in names]
    raw = [RawResult(tensors[f"{s}.pred"], tensors[f"{s}.confidence"]) for s in names]
    for resolution, key in ((100, "resolution_100"), (None, "every_threshold")):
        protocol = dataclasses.replace(PROTOCOLS["depthtrack"], resolution=resolution)
        measured = protocol.measure(truths, raw)
        expected, found = about["expected"][key], measured.summary(np.arange(len(truths)))
        same([found[name] for name in ("Pr", "Re", "F")], [expected[name] for name in ("Pr", "Re", "F")])
        same(measured.thresholds[measured.best()], expected["threshold"])
    curve = PROTOCOLS["cdtb"].measure(truths, raw)
    assert np.array_equal(curve.thresholds, tensors["curve.thresholds"])
    same(curve.precision.mean(0), tensors["curve.precision"])
    same(curve.recall.mean(0), tensors["curve.recall"])
    boxes = raw[0].boxes_xywh.copy()
    boxes[0] = np.nan
    same(metrics.raster_overlaps(boxes, truths[0].boxes_xywh, size), tensors["overlaps.seqa"])


def test_vot_multi_start():
    about, tensors = case("vot-multistart")
    size, names = tuple(about["image_size"]), about["sequences"]
    truths = [Truth(s, tensors[f"{s}.gt"], image_size=size, anchors=tensors[f"{s}.anchor"]) for s in names]
    raw = [RawResult(runs={a: tensors[f"{t.name}.pred_anchor_{a}"] for a in t.runs}) for t in truths]
    short = dataclasses.replace(PROTOCOLS["vot22rgbd"], low=20, high=80)
    for protocol, key, curve in ((short, "EAO_20_80", "80"), (PROTOCOLS["vot22rgbd"], "EAO_115_755", "755")):
        measured = protocol.measure(truths, raw)
        result = score(protocol, truths, raw)
        same(measured.phi(), tensors[f"curve.eao_high{curve}"])
        same(result.scores["EAO"], about["expected"][key])
        same([result.scores["A"], result.scores["R"]], [about["expected"]["A"], about["expected"]["R"]])
        for i, sequence in enumerate(result.sequences):
            expected = about["expected"]["per_sequence"][sequence.name]
            same([sequence.scores["A"], sequence.scores["R"]], [expected["A"], expected["R"]])
            assert measured.progress[i] == expected["accuracy_weight"]
            assert measured.frames[i] == expected["robustness_weight"]


# --------------------------------------------------------------------------------------------------------- the quirks

BOX = (10.0, 10.0, 20.0, 20.0)


def one(protocol, truth, found, **about):
    """The scores of one sequence given as lists of boxes."""
    result = score(protocol, [Truth("a", np.array(truth, dtype=float), **about)], [RawResult(np.array(found))])
    return {**result.scores, "result": result}


@pytest.mark.parametrize(
    ("protocol", "hits", "metric"),
    [
        # A frame without the target counts as a hit in LasHeR's precision, and as a miss in its success.
        ("lasher", {"PR": 1.0, "NPR": 1.0}, "SR"),
        ("visevent", {"PR": 1.0, "NPR": 1.0}, "SR"),
        ("uav123", {"P": 1.0, "Pnorm": 1.0}, "AUC"),
        ("lasot", {"P": 0.5, "Pnorm": 1.0}, "AUC"),
        ("nfs", {"P": 0.5, "Pnorm": 1.0}, "AUC"),
        ("rgbt210", {"PR": 0.5}, "SR"),
    ],
)
def test_a_ground_truth_of_zeros(protocol, hits, metric):
    truth = [BOX, BOX, (0, 0, 0, 0), (0, 0, 0, 0)]
    found = one(protocol, truth, [BOX, BOX, (99.0, 99, 9, 9), (99.0, 99, 9, 9)])
    assert {name: found[name] for name in hits} == hits
    same(found[metric], 20 / 21 / 2)


def test_a_box_at_the_border_counts_like_an_absent_one():
    truth = [BOX, (0.0, 10, 20, 20), BOX, BOX]
    assert one("lasher", truth, truth)["SR"] == pytest.approx(20 / 21 * 3 / 4)
    assert one("otb100_got10k", truth, truth)["AUC"] == pytest.approx(20 / 21)


@pytest.mark.parametrize(
    ("protocol", "precision", "normalized"),
    [("visevent", 0.5, 0.5), ("coesot", 0.5, 0.5), ("lasot", 0.5, 0.5), ("lasot_ext", 0.5, 1.0), ("otb100", 1.0, 1.0)],
)
def test_frames_that_flags_call_absent(protocol, precision, normalized):
    visible = np.array([True, False, True, False])
    found = one(protocol, [BOX] * 4, [BOX] * 4, visible=visible)
    names = {"P": "Pnorm", "PR": "NPR"}
    name = next(name for name in names if name in found)
    assert (found[name], found[names[name]]) == (precision, normalized)


def test_flags_shrink_got10k_and_leave_out_the_first_frame():
    visible = np.array([True, True, False, True])
    far = (300.0, 300.0, 20.0, 20.0)
    found = one("got10k", [BOX] * 4, [far, BOX, far, far], visible=visible, image_size=(640, 480))
    assert (found["AO"], found["SR0.5"]) == (0.5, 0.5)


def test_rounding_and_bad_rows():
    truth = [BOX] * 3
    nearly = (10.4, 9.6, 20.4, 19.6)
    assert one("lasher", truth, [nearly] * 3)["SR"] == pytest.approx(20 / 21)
    assert one("visevent", truth, [nearly] * 3)["SR"] < 20 / 21 - 0.02
    assert one("lasher", truth, [BOX, (5.0, 5, 0, 9), BOX])["SR"] == pytest.approx(20 / 21)
    assert one("rgbt210", truth, [BOX, (5.0, 5, 0, 9), BOX])["SR"] == pytest.approx(20 / 21 * 2 / 3)
    assert one("visevent", truth, [BOX, (np.nan, 5, 9, 9), BOX])["SR"] == pytest.approx(20 / 21)
    assert one("otb100", truth, [BOX, (5.0, 5, 0, 9), BOX])["AUC"] == pytest.approx(20 / 21)
    with pytest.raises(ValueError, match=r"line 2 of the result of 'a': .*OTB100 takes no NaN and no negative side"):
        one("otb100", truth, [BOX, (5.0, 5, -1, 9), BOX])


def test_the_nearer_of_two_modalities_is_taken_frame_by_frame():
    other = (100.0, 100.0, 20.0, 20.0)
    truth = Truth("a", np.array([BOX, BOX, BOX]), second_boxes_xywh=np.array([other, other, other]))
    found = score("rgbt234", [truth], [RawResult(np.array([BOX, other, (300.0, 300, 20, 20)]))])
    assert found.scores["MPR"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="'a' lacks boxes of the second modality"):
        one("rgbt234", [BOX], [BOX])


def test_pooled_and_averaged_sets():
    """GTOT weighs every frame the same, RGBT234 every sequence; GTOT's limit of 5 pixels is strict."""
    def truths(n):
        boxes = np.tile(BOX, (n, 1))
        return Truth(f"s{n}", boxes, second_boxes_xywh=boxes)

    pair = [truths(1), truths(3)]
    raw = [RawResult(np.array([BOX])), RawResult(np.tile((300.0, 10, 20, 20), (3, 1)))]
    assert score("gtot", pair, raw).scores["MPR"] == 0.25
    assert score("rgbt234", pair, raw).scores["MPR"] == 0.5
    shifted = [RawResult(np.add(t.boxes_xywh, (5.0, 0, 0, 0))) for t in pair]
    assert score("gtot", pair, shifted).scores["MPR"] == 0.0


def test_vtuav_counts_annotated_frames_only():
    boxes = np.tile(np.array(BOX), (20, 1))
    annotated = np.arange(20) % 10 == 0
    boxes[~annotated] = np.nan
    truth = Truth("a", boxes, annotated=annotated, second_boxes_xywh=boxes)
    found = np.full((20, 4), 300.0)
    found[10] = BOX
    assert score("vtuav", [truth], [RawResult(found)]).scores["MPR"] == 0.5


def test_a_sequence_in_which_nothing_hits_is_left_out_of_the_event_sets():
    far = np.tile((300.0, 300, 9, 9), (4, 1))
    hidden = Truth("b", np.tile(BOX, (4, 1)), visible=np.array([False, True, True, True]))
    result = score("visevent", [Truth("a", np.tile(BOX, (4, 1))), hidden], [RawResult(np.tile(BOX, (4, 1))),
                                                                             RawResult(far)])  # fmt: skip
    assert result.scores["PR"] == 1.0 and [row.counted for row in result.sequences] == [True, False]


def test_attributes_and_curves():
    truths = [Truth(name, np.tile(BOX, (4, 1)), attributes=attributes) for name, attributes in
              [("a", ("FM", "LR")), ("b", ("LR",))]]  # fmt: skip
    result = score("lasher", truths, [RawResult(truths[0].boxes_xywh), RawResult(np.full((4, 4), 300.0))], "mine")
    assert result.attributes["FM"].scores["PR"] == 1.0
    same([result.attributes["LR"].scores["PR"], result.scores["PR"]], [0.625, 0.625])
    curve = result.curves["success"]
    assert (len(curve.x), curve.x_label) == (21, "overlap threshold") and curve.y[0] == pytest.approx(0.625)
    assert EvaluationResult.from_json(result.to_json()) == result


@pytest.mark.parametrize(
    ("protocol", "about", "message"),
    [
        ("got10k", {}, "'a' lacks the size of its frames"),
        ("depthtrack", {}, "'a' lacks the size of its frames"),
        ("vot22rgbd", {"image_size": (64, 48)}, "'a' has no anchors"),
        ("nowhere", {}, "there is no protocol 'nowhere'; known: lasher, "),
    ],
)
def test_what_a_protocol_cannot_do_without(protocol, about, message):
    with pytest.raises(ValueError, match=message):
        one(protocol, [BOX] * 2, [BOX] * 2, **about)


def test_short_results_and_no_sequences():
    with pytest.raises(ValueError, match="the result of 'a' has 1 boxes for 2 frames"):
        one("lasher", [BOX] * 2, [BOX])
    with pytest.raises(ValueError, match="no sequence to score"):
        score("lasher", [], [])


def test_the_table():
    assert set(PROTOCOLS) >= {"lasher", "rgbt234", "rgbt210", "gtot", "vtuav", "visevent", "coesot", "fe108", "lasot",
                              "lasot_ext", "uav123", "nfs", "otb100", "tnl2k", "got10k", "depthtrack", "cdtb",
                              "vot22rgbd"}  # fmt: skip
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name and protocol.source and protocol.headline in protocol.metric_names
    assert get_protocol("GOT-10k") is PROTOCOLS["got10k"]
