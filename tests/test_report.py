"""Reports: the texts, and the page in a real browser."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmtrackers.data.sequence import Sequence
from mmtrackers.evaluation import (
    PROTOCOLS,
    EvaluationResult,
    RawResult,
    SequenceScore,
    Settings,
    Speed,
    StageTime,
    Truth,
    get_protocol,
    score,
)
from mmtrackers.evaluation.report.pictures import boxes_of, window_round
from mmtrackers.evaluation.report.sets import grouped, published_on
from mmtrackers.evaluation.report.text import render, tex
from mmtrackers.evaluation.report.write import write_report

TRACKERS = {"good": 1.0, "a <b>bold</b> | name & \"more\"": 6.0, "lost": 40.0}
LENGTH, SIZE = 24, (120, 160)


def sequences(folder: Path, protocol: str) -> tuple[list[Sequence], list[Truth]]:
    """Three short RGB-T videos of a white patch; the target of the second is away for some frames."""
    videos, truths = [], []
    for k, name in enumerate(("alpha", "beta", "gamma")):
        boxes = np.array([(20 + 3.0 * i, 30 + 10 * k + i, 24, 18) for i in range(LENGTH)])
        present = np.ones(LENGTH, dtype=bool)
        if name == "beta":
            present[10:14], boxes[10:14] = False, 0
        files: dict[str, list[Path]] = {"rgb": [], "thermal": []}
        for i, (x, y, w, h) in enumerate(boxes.astype(int)):
            image = np.full((*SIZE, 3), 90, np.uint8)
            image[y : y + h, x : x + w] = 255
            for modality, paths in files.items():
                paths.append(folder / protocol / name / modality / f"{i:03d}.png")
                paths[-1].parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(paths[-1]), image if modality == "rgb" else image[:, :, 0])
        videos.append(Sequence(name, files, boxes, present, second_boxes_xywh=boxes + 2))
        attributes = ("FM",) if name == "alpha" else ("FM", "OCC & co")
        truths.append(Truth(name, boxes, image_size=SIZE[::-1], second_boxes_xywh=boxes, attributes=attributes))
    return videos, truths


def evaluation(folder: Path, protocol: str, tracker: str, noise: float, truths: list[Truth]) -> EvaluationResult:
    """A tracker that moves off by `noise` pixels in the last sequence, by half of it in the first two."""
    files, results = {}, []
    for k, truth in enumerate(truths):
        boxes = truth.boxes_xywh.copy()
        boxes[1:, :2] += noise * (0.5 if k < 2 else 1)
        files[truth.name] = folder / protocol / f"tracker{list(TRACKERS).index(tracker)}" / f"{truth.name}.txt"
        files[truth.name].parent.mkdir(parents=True, exist_ok=True)
        rows = [",".join(f"{value:.2f}" for value in row) for row in boxes]
        rows[0] = "1" if get_protocol(protocol).files == "vot" else rows[0]
        files[truth.name].write_text("\n".join(rows) + "\n")
        results.append(RawResult(boxes, np.linspace(1, 0.2, len(boxes))))
    result = score(protocol, truths, results, tracker)
    rows = tuple(replace(row, file=str(files[row.name])) for row in result.sequences)
    return replace(result, sequences=rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[EvaluationResult]]:
    """A report of three trackers on LasHeR and DepthTrack, with everything that a result can have."""
    folder, results, videos = tmp_path_factory.mktemp("report"), [], {}
    for protocol in ("lasher", "depthtrack"):
        found, truths = sequences(folder, protocol)
        videos[get_protocol(protocol).title] = found
        results += [evaluation(folder, protocol, name, noise, truths) for name, noise in TRACKERS.items()]
    stages = {name: StageTime(2.0, 1.5, 3.0) for name in ("read", "crop", "model", "decode")}
    speed = Speed(stages | {"track": StageTime(8.0, 7.0, 9.0)}, 60, 5, 1, "cpu", 2)
    settings = Settings("org/good", "SEATrackForTracking", "org/base", "AMG_LORA", "thermal", 2, pack=True)
    results[0] = replace(results[0], speed=speed, settings=settings, notes=("mixed pixel bases",))
    noted = replace(results[2].sequences[1], partial=True, notes=("ends at line 20 of 24",))
    results[2] = replace(results[2], partial=True, missing=("delta",),
                         sequences=(results[2].sequences[0], noted, results[2].sequences[2]))  # fmt: skip
    write_report(results, folder / "out", videos)
    return folder / "out", results


def test_json_holds_everything_and_reads_back(made) -> None:
    folder, results = made
    record = json.loads((folder / "report.json").read_text())
    assert [EvaluationResult.from_json(json.dumps({"format": 1} | result)) for result in record["results"]] == results
    assert {"tracker": "SEATrack", "scores": {"PR": 0.716, "NPR": 0.675, "SR": 0.573},
            "source": "AutoLab-SAI-SJTU/SEATrack, assets/Results.png"} in record["published"]["lasher"]  # fmt: skip


def test_markdown_is_ready_to_paste(made) -> None:
    folder, results = made
    text = (folder / "report.md").read_text()
    shown = {name: f"{100 * value:.1f}" for name, value in results[0].scores.items()}
    assert f"| **good** | **{shown['PR']}** | **{shown['NPR']}** | **{shown['SR']}** | 125.0 |" in text
    assert "| SEATrack (published [5]) | 71.6 | 67.5 | 57.3 |  |" in text
    assert "**lost** (partial)" in text and "> **Partial:** lost lacks 1 sequences and has 1 short ones" in text
    assert "They are of the whole test split (245 sequences), the measured ones of 3, some of them partial: no" in text
    assert "[5] AutoLab-SAI-SJTU/SEATrack, assets/Results.png" in text
    assert "\n| FM (3) | " in text and "\n| OCC &amp; co (2) | " in text
    assert "AMG\\_LORA on org/base, thermal, float32, cpu, packed; settings" in text and "mixed pixel bases" in text
    assert "<b>" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for line in tables:  # a bar inside of a name is escaped: every row has as many cells as its table's ruler
        assert len(re.findall(r"(?<!\\)\|", line)) in {len(re.findall(r"\|", t)) for t in tables if "---" in t}


@pytest.mark.parametrize("name", ["a\nb", "[x](http://e.vil)", "`rm`", "_a_ *b*", "# title", "~~gone~~", "<b>", "a|b"])
def test_names_are_no_markup(name) -> None:
    result = EvaluationResult(name, name, "lasher", {"SR": 0.5}, "SR", notes=(name,))
    text = render("report.md.jinja", grouped([result]))
    for bad in ("[x]", " `rm", " _a_", "*b*", "\n# ", " ~~", "<b>", "a|b", "a\nb"):
        assert bad not in text.replace("**\\", "\\")


def test_latex_is_escaped_and_marks_what_is_published(made) -> None:
    text = (made[0] / "report.tex").read_text()
    assert r"SEATrack$^\dagger$ & 71.6 & 67.5 & 57.3 \\" in text
    assert r"bold\textless{}/b\textgreater{} \textbar{} name \& " in text and r"lost (partial) & " in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert len(set(re.findall(r"\\label\{(.+?)\}", text))) == 2
    assert tex("two\nlines") == "two lines"
    assert tex("a_b% {x} \\") == r"a\_b\% \{x\} \textbackslash{}"


def test_published_figures_name_metrics_of_their_protocol() -> None:
    rows = 0
    for name, protocol in PROTOCOLS.items():
        for row in published_on(name):
            rows += 1
            assert set(row.scores) <= set(protocol.metric_names) and row.source
            assert protocol.headline in row.scores and all(0.2 < value < 0.95 for value in row.scores.values())
    assert rows == 111
    best = max(published_on("vot22rgbd"), key=lambda row: row.scores["EAO"])
    assert best.tracker == "STTrack" and best.scores == {"EAO": 0.776}


def test_results_are_grouped_and_ranked() -> None:
    one = EvaluationResult("one", "LasHeR", "lasher", {"PR": 0.7, "SR": 0.5}, "SR")
    two = EvaluationResult("two", "LasHeR", "lasher", {"PR": 0.6, "SR": 0.55}, "SR")
    other = EvaluationResult("one", "OTB100", "otb100", {"AUC": 0.6}, "AUC")
    first, second = grouped([one, other, two])
    assert [row.tracker for row in first.results] == ["two", "one"] and first.best("PR") == 0.7
    assert [row.tracker for row in first.published][:2] == ["SUTrack-L384", "SeqTrackv2-L384"]
    assert second.best("AUC") is None and not second.published
    assert grouped([one, replace(two, partial=True)])[0].best("SR") is None
    rows = tuple(SequenceScore(str(k), 9, {"AO": 0.7}) for k in range(180))
    whole = EvaluationResult("one", "GOT-10k", "got10k", {"AO": 0.7}, "AO", sequences=rows)
    for result, same in [(whole, True), (replace(whole, split="val"), False), (replace(whole, partial=True), False)]:
        assert ("no comparison" in render("report.md.jinja", grouped([result]))) is not same
    assert [part.title for part in grouped([one, replace(one, split="test"), replace(one, split="val")])] == [
        "LasHeR", "LasHeR", "LasHeR, val"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="there is no result to report"):
        grouped([])
    with pytest.raises(ValueError, match="two results of 'one' on LasHeR"):
        grouped([one, replace(one, scores={"SR": 0.4})])


def test_a_result_without_extras_makes_a_report(tmp_path: Path) -> None:
    write_report([EvaluationResult("bare", "My set", "unknown", {"X": 0.5}, "X")], tmp_path)
    assert "| **bare** | 50.0 |" in (tmp_path / "report.md").read_text()
    assert "My set" in (tmp_path / "report.html").read_text()


def test_windows_hold_the_boxes_and_keep_the_pictures_shape() -> None:
    far = [np.array([0.0, 0, 50, 50]), np.array([1800.0, 1000, 100, 60])]
    assert window_round(far, 1920, 1080) == (0, 0, 1920, 1080)
    left, top, width, height = window_round([np.array([-30.0, 20, 60, 40]), np.array([100.0, 60, 80, 60])], 640, 480)
    assert (left, width / height) == (0, pytest.approx(640 / 480, rel=0.01)) and width >= 180 and top + height >= 120


def test_pictures_take_the_boxes_of_every_form_of_result(tmp_path: Path) -> None:
    boxes = np.array([[0.0, 0, 0, 0], [0, 0, 0, 0], [10, 10, 20, 16], [12, 11, 20, 16], [14, 12, 20, 16]])
    present = np.array([False, False, True, True, True])
    video = Sequence("late", {"rgb": [tmp_path / "none.png"] * 5}, boxes, present)
    files = {"from the first visible": boxes[2:], "short": boxes[:4]}
    rows = []
    for name, found in files.items():
        file = tmp_path / f"{name}.txt"
        file.write_text("".join(",".join(map(str, row)) + "\n" for row in found.tolist()))
        row = SequenceScore("late", 5, {"SR": 0.5}, file=str(file))
        rows.append(EvaluationResult(name, "VisEvent", "visevent", {"SR": 0.5}, "SR", sequences=(row,)))
    rows.append(replace(rows[0], tracker="lost file", sequences=(replace(row, file="nowhere.txt"),)))
    read = boxes_of(grouped(rows)[0], video)
    assert set(read) == set(files)
    np.testing.assert_array_equal(read["from the first visible"][2:], boxes[2:])
    np.testing.assert_array_equal(read["short"][:4], boxes[:4])
    assert np.isnan(read["from the first visible"][:2]).all() and np.isnan(read["short"][4]).all()
    video = Sequence("late", {"rgb": [tmp_path / "none.png"] * 3}, boxes[2:], present[2:])
    corners = np.concatenate([boxes[2:, :2], boxes[2:, :2] + boxes[2:, 2:]], axis=1)
    file.write_text("".join(",".join(map(str, row)) + "\n" for row in corners.tolist()))
    np.testing.assert_array_equal(boxes_of(grouped(rows)[0], video)["short"], boxes[2:])


class Page(HTMLParser):
    """Checks nesting; collects tags with attributes."""

    VOID = {"meta", "input", "br", "link", "img", "hr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_self_contained(made) -> None:
    text = (made[0] / "report.html").read_text()
    page = Page(text)
    links = [attributes[name] for _, attributes in page.found for name in ("src", "href") if name in attributes]
    assert links and all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    assert "url(" not in text and "@import" not in text and "<b>bold</b>" not in text
    images = sum(tag == "image" for tag, _ in page.found)
    assert images == 2 * 3 * 6 * 2  # sets, sequences, frames, streams
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids)) and set(link[1:] for link in links if link[0] == "#") <= set(ids)
    # the worst sequence comes first, and the lost tracker's boxes are where its file says
    assert text.index("<h4>gamma</h4>") < text.index("<h4>alpha</h4>")
    assert "target absent" in text


# ------------------------------------------------------------------------------------------------------- the browser


DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


@pytest.fixture
def page(made, browser, request: pytest.FixtureRequest):
    """The report in a browser without a network; whatever it reports as an error fails the test."""
    context = browser.new_context(**getattr(request, "param", DESKTOP), offline=True)
    opened, errors = context.new_page(), []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda call: errors.append(call.url) if not call.url.startswith(("file:", "data:")) else None)
    opened.goto((made[0] / "report.html").as_uri())
    yield opened
    assert errors == []
    context.close()


def column(page, index: int) -> list[str]:
    rows = page.locator("#lasher-lasher .sequences tbody tr:visible")
    return [row.locator("td").nth(index).inner_text() for row in rows.all()]


def test_sorting_filtering_and_choosing_a_score(page) -> None:
    section = page.locator("#lasher-lasher")
    head = section.locator(".sequences thead th:visible")
    assert column(page, 0) == ["alpha", "beta", "gamma"]
    head.nth(2).locator("button").click()
    assert head.nth(2).get_attribute("aria-sort") == "ascending"
    up = section.locator(".sequences tbody tr td:first-child").all_inner_texts()
    head.nth(2).locator("button").click()
    assert head.nth(2).get_attribute("aria-sort") == "descending"
    assert section.locator(".sequences tbody tr td:first-child").all_inner_texts() == up[::-1] and up[0] != up[-1]
    head.nth(0).locator("button").click()
    assert column(page, 0) == ["alpha", "beta", "gamma"] and head.nth(2).get_attribute("aria-sort") is None
    section.locator("[data-filter]").fill("LINE 20")  # a note's words, in any case
    assert column(page, 0) == ["beta"] and section.locator("[data-count]").inner_text() == "1 of 3"
    section.locator("[data-filter]").fill("")
    assert section.locator("td[data-metric=SR]:visible").count() == 9
    section.locator("[data-metrics]").select_option("PR")
    assert section.locator("td[data-metric=SR]:visible").count() == 0
    assert section.locator("td[data-metric=PR]:visible").count() == 9


def test_hiding_a_tracker_hides_it_everywhere(page) -> None:
    def shown(name: str) -> int:
        script = "all('[data-tracker]').filter(e => e.dataset.tracker === name && e.getClientRects().length).length"
        return page.evaluate(f"name => {script}", name)

    before = {name: shown(name) for name in TRACKERS}
    chip = page.locator("button.chip", has_text="bold")
    name = list(TRACKERS)[1]
    assert chip.inner_text() == name and before[name] > 40
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    assert shown(name) == 0 and shown("good") == before["good"]
    chip.click()
    assert {name: shown(name) for name in TRACKERS} == before


def test_published_rows_fold_and_the_theme_turns(page) -> None:
    rows = page.locator("#lasher-lasher tbody.published tr:visible")
    assert rows.count() == 17 and "published" in rows.first.inner_text()
    button = page.locator("#lasher-lasher [data-published]")
    button.click()
    assert rows.count() == 0 and button.inner_text() == "show"
    button.click()
    assert rows.count() == 17
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator("#theme").click()
    dark = page.evaluate(ground)
    page.locator("#theme").click()
    assert light == page.evaluate(ground) == "rgb(255, 255, 255)" and dark != light


def test_pointing_at_a_curve_reads_it(page, made) -> None:
    figure = page.locator("#lasher-lasher figure[data-chart=success]")
    legend = figure.locator(".legend li", has_text="good").locator("output")
    rest = legend.inner_text()
    figure.scroll_into_view_if_needed()
    box = figure.locator("svg.chart").bounding_box()
    plot = (box["x"] + box["width"] * 40 / 360, box["width"] * 308 / 360)
    page.mouse.move(plot[0] + 0.5 * plot[1], box["y"] + 60)
    assert figure.locator(".at").inner_text() == "overlap threshold 0.5"
    assert legend.inner_text() == f"{100 * made[1][0].curves['success'].y[10]:.1f}"
    page.mouse.move(5, 5)
    assert legend.inner_text() == rest == f"{100 * made[1][0].scores['SR']:.1f}"
    assert figure.locator(".at").inner_text() == "SR"


@pytest.mark.parametrize("page", [PHONE, PHONE | {"color_scheme": "dark"}, DESKTOP], indirect=True)
def test_nothing_runs_out_of_the_window(page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # what is wider than the window scrolls in a frame of its own
    wide = page.evaluate("all('main *').filter(e => !e.closest('.scroll, .sequences, svg')"
                         " && e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1)"
                         ".map(e => e.tagName + '.' + e.className)")  # fmt: skip
    assert wide == []
    ink, ground = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, ground)]
    assert abs(light[0] - light[1]) > 500
    assert page.evaluate("all('svg.frame image').every(image => image.getBoundingClientRect().width > 100)")
