"""Template memory: which frames serve when, what is kept for them, and that long videos stay small."""

import gc
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_tools import cases, load_case
from tracking_stub import RedPatchModel, frame, moving, processor

from mmtrackers import Tracker
from mmtrackers.tracking.memory import (
    QuarterReferences,
    SpreadTemplates,
    TemplateMemory,
    TemplatePolicy,
    ThirdReferences,
)

POLICIES = [
    TemplatePolicy(),
    SpreadTemplates(max_memory=None),
    SpreadTemplates(max_memory=24),
    SpreadTemplates(max_memory=100),
    SpreadTemplates(max_memory=40, templates=5),
    SpreadTemplates(max_memory=None, templates=2),
    QuarterReferences(max_memory=None),
    QuarterReferences(max_memory=30),
    ThirdReferences(max_memory=30),
]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_every_template_was_kept_since_its_frame_passed(policy):
    memory = TemplateMemory(policy)
    memory.add(0, (torch.tensor(0), None))
    for now in range(1, 1200):
        indices = policy.indices(now)
        assert [int(memory[index][0]) for index in indices] == list(indices)
        assert indices[0] == 0 and all(0 <= index < now for index in indices)
        if memory.wants(now):
            memory.add(now, (torch.tensor(now), None))
        if policy != TemplatePolicy() and policy.max_memory is not None:
            assert len(memory) <= policy.max_memory + 1
            assert len(indices) <= policy.templates + 1
            assert len(set(indices)) == len(indices) or now < 3
    assert policy != TemplatePolicy() or len(memory) == 1


@pytest.mark.parametrize(
    ("now", "indices"),
    [(1, (0,)), (2, (0, 1)), (3, (0, 1, 2)), (4, (0, 1, 2)), (6, (0, 1, 3, 5)), (9, (0, 1, 4, 7)), (10, (0, 1, 4, 7)),
     (500, (0, 83, 249, 415))],
)  # fmt: skip
def test_the_frames_that_odtrack_chooses(now, indices):
    assert SpreadTemplates(templates=3).indices(now) == indices


@pytest.mark.parametrize("case", cases(r"spmtrack-modules.*"))
@pytest.mark.parametrize(("rule", "policy"), [("general", QuarterReferences), ("lasot_base", ThirdReferences)])
def test_the_frames_that_spmtrack_chooses(case, rule, policy):
    for now, indices in load_case(case)[0]["parts"]["memory_selection"][rule].items():
        assert policy(max_memory=None).indices(int(now)) == tuple(indices)
        assert int(now) > 1024 or policy().indices(int(now)) == tuple(indices)
    assert [policy().indices(now) for now in (1, 2, 3)] == [(0, 0, 0), (0, 1, 1), (0, 1, 2)]


@pytest.mark.parametrize(("policy", "share"), [(QuarterReferences, 3 / 4), (ThirdReferences, 2 / 3)])
def test_references_that_no_later_frame_reaches_are_not_kept(policy, share):
    kept = policy(max_memory=None).kept(3000)
    assert kept.step == 1
    assert len(kept) == pytest.approx(3000 * share, abs=2)


def test_a_bounded_memory_is_exact_at_first_and_close_later():
    exact, bounded = SpreadTemplates(max_memory=None), SpreadTemplates(max_memory=64)
    for now in range(1, 65):
        assert bounded.indices(now) == exact.indices(now)
    for now in range(65, 5000):
        stride = bounded.kept(now).step
        assert now <= 64 * stride < 2 * now
        pairs = zip(bounded.indices(now), exact.indices(now), strict=True)
        assert all(0 <= ours - theirs < stride for ours, theirs in pairs)
    with pytest.raises(ValueError, match="expected at least 24 frames for 3 templates, or None"):
        SpreadTemplates(max_memory=20)
    with pytest.raises(ValueError, match="templates is 1, expected 2 or more"):
        SpreadTemplates(templates=1)


class Remembering(RedPatchModel):
    """A stub whose embedding is the template's mean colour, and which notes the templates of every frame."""

    def __init__(self, policy: TemplatePolicy, **kwargs):
        super().__init__(**kwargs)
        self.template_policy, self.seen = policy, []

    def embed_template(self, template: torch.Tensor) -> torch.Tensor:
        super().embed_template(template)
        assert template.shape[1] == 1
        return template.transpose(1, 2).transpose(0, 1).flatten(0, 1).mean((-2, -1))

    def __call__(self, search: torch.Tensor, template: torch.Tensor, state: object = None):
        self.seen.append(template)
        return super().__call__(search, template, state)


def test_a_session_uses_the_crops_of_the_chosen_frames():
    policy, (frames, boxes) = SpreadTemplates(templates=2), moving(14)
    model, plain = Remembering(policy), processor()
    session = Tracker(model, plain).start(frames[0], boxes[0])
    found = [boxes[0], *(session.update(f).box for f in frames[1:])]
    means = [plain.template([f["rgb"]], [box])[0, 0].mean((-2, -1)) for f, box in zip(frames, found, strict=True)]
    for now, seen in enumerate(model.seen, start=1):
        expected = torch.stack([means[index][0] for index in policy.indices(now)])
        torch.testing.assert_close(seen[0], expected, atol=0, rtol=0)


def test_several_targets_have_templates_of_their_own_and_equal_single_ones():
    a, b = (20, 30, 20, 16), (110, 80, 26, 20)
    later = [frame((20 + k, 30, 20, 16), (110 - k, 80, 26, 20)) for k in range(8)]

    def run(boxes):
        model = Remembering(SpreadTemplates(templates=3))
        session = Tracker(model, processor()).start(later[0], boxes)
        for f in later[1:]:
            session.update(f)
        return model.seen[-1]

    both = run([a, b])
    assert both.shape == (2, 4, 3)
    assert torch.equal(both[:1], run(a)) and torch.equal(both[1:], run(b))


def test_an_absent_target_keeps_its_newest_template():
    model = Remembering(SpreadTemplates(templates=3))
    tracker = Tracker(model, processor(), absent_below=0.5)
    red, box = frame((20, 30, 20, 16)), (20, 30, 20, 16)
    session = tracker.start(red, box)
    session.update(red)
    model.score = 0.1
    session.update(frame())
    session.update(frame())
    first, newest = model.seen[1][0, 0], model.seen[-1][0, -1]
    torch.testing.assert_close(newest, model.seen[1][0, 1])
    assert abs(newest - first).max() < 0.5, "the target, not the empty place where it was"


def test_a_template_is_embedded_when_it_comes_into_use_and_kept_while_it_is(monkeypatch):
    model, (frames, boxes) = Remembering(SpreadTemplates(templates=2)), moving(12)
    session = Tracker(model, processor()).start(frames[0], boxes[0])
    embedded, counts, use = [], [], [set(SpreadTemplates(templates=2).indices(now)) for now in range(1, 11)]
    monkeypatch.setattr(session, "_embed", lambda crops: embedded.append(crops) or torch.zeros(1, 1, 3))
    for now in range(1, 11):
        session.update(frames[now])
        counts.append(len(embedded))
    new = [len(later - before) for before, later in pairwise(use)]
    assert counts[0] == 0 and np.diff(counts).tolist() == new, "only what was not in use the frame before"


def test_ten_thousand_frames_with_a_growing_memory_stay_flat():
    image = frame((60, 50, 24, 20), size=(100, 140))
    model = Remembering(SpreadTemplates(max_memory=64))
    model.seen = model.batches = model.states = Forgetful()
    session = Tracker(model, processor()).start(image, (60, 50, 24, 20))
    names, kept, alive = len(vars(session)), [], []
    for now in range(1, 10_001):
        session.update(image)
        if now in (1_024, 2_048, 4_096, 8_192):  # right before a stride doubles, when most is kept
            kept.append(len(session._memory))
            gc.collect()
            alive.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
    assert max(kept) == min(kept) <= 64
    assert max(alive) - min(alive) < 10
    assert session.frame_index == 10_000 and len(vars(session)) == names and len(session._tokens) == 4


class Forgetful(list):
    """A list that keeps nothing, so that the stub itself does not grow."""

    def append(self, item: object) -> None:
        pass


GROWTH = """
import numpy as np, torch
from mmtrackers import ODTrackConfig, ODTrackForTracking, Tracker, TrackerImageProcessor

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

torch.manual_seed(0)
config = ODTrackConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=1, head_channels=8, template_size=192, search_size=192
)
tracker = Tracker(ODTrackForTracking(config).eval(), TrackerImageProcessor(template_size=192, search_size=192))
frame = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
session = tracker.start(frame, [140, 100, 60, 40])
before, most = 0, 0
for now in range(1, 1501):
    session.update(frame)
    most = max(most, len(session._memory))
    if now == 100:
        before, kept = resident(), len(session._memory)
print(resident() - before, (most - kept) * 3 * 192 * 192)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_resident_memory_grows_by_what_the_kept_crops_need():
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True)
    grown, needed = map(int, done.stdout.split())
    assert needed > 80e6 and grown < 1.05 * needed, (grown, needed)
