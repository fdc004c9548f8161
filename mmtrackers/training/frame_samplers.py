"""Which frames of a sequence become a training sample: one rule per published recipe."""

from dataclasses import dataclass

import numpy as np

Drawn = tuple[list[int], list[int]]
WIDEN = 5


@dataclass(frozen=True)
class CausalSampler:
    """Templates first, search frames after them: the «causal» rule of the OSTrack family and of ODTrack.

    The newest template is uniform over the visible frames; the others lie at most `max_gap` frames before it, the
    search frames less than `max_gap` frames after it, each drawn with replacement and sorted by time. Where there are
    none, all is drawn anew with a gap that is larger by 5. Written after botaoye/OSTrack and GXNU-ZhongLab/ODTrack,
    lib/train/data/sampler.py.

    Example:
        >>> CausalSampler(3, 2)(np.arange(9), 9, np.random.default_rng(0))
        ([3, 3, 6], [7, 7])
    """

    templates: int = 1
    searches: int = 1
    max_gap: int = 200

    @property
    def least_visible(self) -> int:
        """Visible frames that a sequence must have at least."""
        return 5 if self.templates + self.searches == 2 else 2 * (self.templates + self.searches) + 1

    def __call__(self, visible: np.ndarray, length: int, rng: np.random.Generator) -> Drawn:
        """Template and search frames of a sequence of `length` frames, of which those with the indices `visible`
        (ascending) show the target; ValueError where none of them can be the newest template."""
        bases = visible[(visible >= self.templates - 1) & (visible < length - self.searches)]
        if len(bases) == 0 or visible[-1] <= bases[0] or (self.templates > 1 and visible[0] >= bases[-1]):
            raise ValueError(f"{self.templates} template and {self.searches} search frames cannot be drawn in order "
                             f"from {len(visible)} visible frames of {length}")  # fmt: skip
        gap = self.max_gap
        while True:
            base = int(rng.choice(bases))
            first = np.searchsorted(visible, base - gap) if self.templates > 1 else 0
            before = visible[first : np.searchsorted(visible, base)]
            after = visible[slice(*np.searchsorted(visible, (base + 1, base + gap)))]
            if len(after) and (self.templates == 1 or len(before)):
                earlier = rng.choice(before, self.templates - 1).tolist() if self.templates > 1 else []
                return sorted([*earlier, base]), sorted(rng.choice(after, self.searches).tolist())
            gap += WIDEN


@dataclass(frozen=True)
class IntervalSampler:
    """A template anywhere, a search frame near it, before or after: LoRAT's rule.

    Template: uniform over the visible frames. Search: uniform over the other visible frames at most `max_gap` away;
    the template's own frame where there is none. After LitingLin/LoRAT (siamese_training_pair_sampling).

    Example:
        >>> IntervalSampler(max_gap=1)(np.array([2, 3, 90]), 100, np.random.default_rng(3))
        ([90], [90])
    """

    max_gap: int = 100
    templates = 1
    searches = 1
    least_visible = 1

    def __call__(self, visible: np.ndarray, length: int, rng: np.random.Generator) -> Drawn:
        """As `CausalSampler`."""
        template = int(rng.choice(visible))
        near = visible[(np.abs(visible - template) <= self.max_gap) & (visible != template)]
        return [template], [int(rng.choice(near)) if len(near) else template]


@dataclass(frozen=True)
class OrderedSampler:
    """Three references, then two search frames, in forward or reversed time: SPMTrack's rule.

    References lie within `max_gap` frames of a common frame; the search frames all lie on one side of the references,
    at most `search_gap` frames away; both with replacement. Sorted up or down with equal chance, the first
    `templates` of the list are the references: roles follow the order in time. After WenRuiCai/SPMTrack
    (siamese_training_pair_sampling).

    Example:
        >>> OrderedSampler()(np.arange(10), 10, np.random.default_rng(1))
        ([8, 8, 7], [5, 4])
    """

    templates: int = 3
    searches: int = 2
    max_gap: int = 200
    search_gap: int = 400
    attempts: int = 20

    @property
    def least_visible(self) -> int:
        """As `CausalSampler`."""
        return self.templates + self.searches

    def __call__(self, visible: np.ndarray, length: int, rng: np.random.Generator) -> Drawn:
        """As `CausalSampler`; ValueError where no side with enough frames was found."""
        for attempt in range(self.attempts):
            gap = self.max_gap + WIDEN * attempt
            middle = int(rng.choice(visible))
            near = visible[(np.abs(visible - middle) <= gap) & (visible != middle)]
            if len(near) < self.templates:
                continue
            references = np.sort([middle, *rng.choice(near, self.templates - 1)])
            first, last = int(references[0]), int(references[-1])
            before = visible[(visible >= first - self.search_gap) & (visible < first)]
            after = visible[(visible > last) & (visible <= last + self.search_gap)]
            if sides := [side for side in (before, after) if len(side) >= self.searches]:
                searches = rng.choice(sides[int(rng.integers(len(sides)))], self.searches)
                frames = np.sort([*references, *searches])[:: 1 if rng.random() < 0.5 else -1].tolist()
                return frames[: self.templates], frames[self.templates :]
        raise ValueError(f"{self.templates} references with {self.searches} search frames beside them cannot be drawn "
                         f"from {len(visible)} visible frames of {length}")  # fmt: skip


FrameSampler = CausalSampler | IntervalSampler | OrderedSampler
