"""The comparison of tuners: every row is trained and measured once, and what is done is not done again."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import typer
from accelerate.state import AcceleratorState, GradientState

from mmtrackers import OSTrackConfig, OSTrackForTracking, TrackerImageProcessor
from mmtrackers.synthetic.pairs import PictureLibrary

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location("compare_tuners", EXAMPLES / "compare_tuners.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_tuners", module)
    spec.loader.exec_module(module)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield module
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Made-up pictures and a base of four layers."""
    rng = np.random.default_rng(1)
    for kind, suffix in (("cutouts", "png"), ("backgrounds", "jpg")):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for index in range(24):
            picture = cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (120, 90))
            if kind == "cutouts":
                picture = np.dstack((picture, cv2.circle(np.zeros((90, 120), np.uint8), (60, 45), 40, 255, -1)))
            cv2.imwrite(str(tmp_path / "pictures" / kind / f"{index}.{suffix}"), picture)
    config = OSTrackConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, template_size=32, search_size=64, head_channels=16,
        elimination_layers=[],
    )  # fmt: skip
    OSTrackForTracking(config).save_pretrained(tmp_path / "base")
    TrackerImageProcessor(template_size=32, search_size=64).save_pretrained(tmp_path / "base")
    return tmp_path


@pytest.mark.slow
def test_every_tuner_gets_a_row_once(compare, place, monkeypatch, capsys):
    monkeypatch.setattr(compare, "RECIPE", [*compare.RECIPE, "--batch-size", "2", "--workers", "0"])
    monkeypatch.setattr(PictureLibrary.__init__, "__defaults__", ("train", 4))  # less clutter: seconds saved
    options = {"base": place / "base", "pictures": place / "pictures", "output": place / "out"}
    options |= {"count": 1, "length": 6}
    rows = compare.main(**options, steps=1)
    assert [(row.tuner, row.streams) for row in rows] == [
        ("AMG_LORA", "RGB + thermal"), ("PROGRESSIVE", "RGB + thermal"), ("SDMOE", "RGB + thermal"),
        ("TMOE", "RGB + thermal"), ("LORA", "RGB + thermal"), ("TMOE", "RGB"), ("LORA", "RGB"),
    ]  # fmt: skip
    assert all(row.parameters > 0 and row.pairs == 2 and 0 <= row.adapted <= 1 for row in rows)
    assert len({row.base for row in rows[:5]}) == len({row.base for row in rows[5:]}) == 1
    assert len({row.parameters for row in rows[:5]}) == 5
    assert [row.scenes for row in rows] == 5 * ["RGB blind"] + 2 * ["night"]
    table = (place / "out" / "table.md").read_text()
    assert len(table.splitlines()) == 2 + len(rows) and table in capsys.readouterr().out

    # a row that is missing is made anew, the others stay
    results = place / "out" / "results.json"
    found = json.loads(results.read_text())
    del found["rows"]["lora-rgb"]
    results.write_text(json.dumps(found))
    trained, train = [], compare.train
    monkeypatch.setattr(compare, "train", lambda tuner, *rest: trained.append(tuner) or train(tuner, *rest))
    again = compare.main(**options, steps=1)
    assert trained == compare.TUNERS[-1:] and again[:-1] == rows[:-1] and len(again) == len(rows)
    with pytest.raises(typer.BadParameter, match=r"made with .*choose another --output"):
        compare.main(**options, steps=2)
