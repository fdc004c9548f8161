"""`mmtrackers data check`: layouts, counts, and problems by file and line."""

import pytest
from test_data import tree
from typer.testing import CliRunner

from mmtrackers import cli
from mmtrackers.data.check import check_folder

FRAMES = {"": {}}
BOX = "5,6,20,20\n"


def test_a_folder_without_sequences(tmp_path):
    [problem] = check_folder(tmp_path).problems
    assert problem.startswith(f"{tmp_path}: no sequence. Expected images in the folder itself")


def test_counts_and_no_problem(tmp_path):
    tree(tmp_path / "a", FRAMES, {"groundtruth.txt": BOX * 11 + ",,,\n"})
    tree(tmp_path / "b", {"visible": {}, "infrared": {}}, {"visible.txt": BOX * 12})
    result = CliRunner().invoke(cli.app, ["data", "check", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "1 sequences as of own folder", "1 sequences as of LasHeR, RGBT234, RGBT210",
        "24 frames, 24 annotated, 23 with the target", "no problem was found",
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), [
    (BOX * 11, "groundtruth.txt has 11 boxes for 12 frames (it ends with line 11)"),
    (BOX * 3 + "1,2,3\n" + BOX * 8, "groundtruth.txt, line 4: 3 numbers; expected 4"),
    (BOX * 2 + "70,20,3,3\n" + BOX * 9, "groundtruth.txt, line 3: [70.0, 20.0, 3.0, 3.0] lies outside the"),
    ("30,30,60,45\n" * 12, "line 1: [30.0, 30.0, 60.0, 45.0] seems to be two corners"),
    ("0.3,0.3,0.2,0.2\n" * 12, "line 1: [0.3, 0.3, 0.2, 0.2] seems to be in fractions"),
    (None, "no annotation; expected groundtruth.txt or groundtruth_rect.txt or init.txt"),
    (",,,\n" * 12, "groundtruth.txt: no line has a box"),
])
def test_problems_are_named_by_file_and_line(tmp_path, text, problem):
    tree(tmp_path / "a", FRAMES, {} if text is None else {"groundtruth.txt": text})
    assert problem in check_folder(tmp_path).problems[0]
    result = CliRunner().invoke(cli.app, ["data", "check", str(tmp_path)])
    assert result.exit_code == 2 and problem in result.stdout


def test_a_broken_picture_and_the_first_ten_of_many(tmp_path):
    for k in range(14):
        folder = tree(tmp_path / f"s{k:02d}", FRAMES, {"groundtruth.txt": BOX * 12})
        (folder / "1.png").write_bytes(b"")
    found = check_folder(tmp_path)
    assert "1.png is empty" in found.problems[0] and len(found.problems) == 14
    assert len(found.lines()) == 13 and found.lines()[-1] == "... and 4 more problems"
    with pytest.raises(ValueError, match="is not a folder"):
        check_folder(tmp_path / "nowhere")
