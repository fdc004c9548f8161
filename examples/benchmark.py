"""
Time, launches and memory of the trackers at their real size, beside what the machine could do at best.

    python examples/benchmark.py --threads 1           # every tracker: plain, packed, packed in bf16
    python examples/benchmark.py --threads 1 --reference ~/OSTrack --system ostrack     # see official.py
    python examples/benchmark.py --tiny --rounds 1     # a smoke run
    python examples/benchmark.py --training            # the training step: plain, and with what makes it cheaper
    python examples/benchmark.py --threads 1 --sequences VOT/bag VTUAV/bus1:rgb     # see benchmark_video.py

Weights are random, batch 1, template embedded beforehand, one frame = forward and decoding. All rows and the matrix
products that calibrate the floor take turns in every round and medians are printed, so that only ratios within one run
say something: milliseconds drift with the machine and its load. With one thread ratios are of CPU time, which other
processes disturb little; else of wall time. The floor is 2 x multiply-adds / the best rate that a matrix product of
the tracker's shapes reached in this run, stock or laid out beforehand, in the row's number format.

Launches are dispatched operations that are not views (`count_launches`). Bytes saved for backward are those that a
training step on two search crops keeps, parameters not counted (`saved_bytes`): two pairs, for SPMTrack one clip of
two frames; adapter training for trackers that have one, the whole base for OSTrack, with the recipe's dropouts and
drop path. Peak is what the process grows by during one such step, at most; the optimizer is not part of a step.

`--reference` runs the official model in this process. Our rows take crop sizes and elimination from its experiment
file, so that both sides do the same work: compare the GMAC columns.
"""

import argparse
import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import torch
from benchmark_video import report_sequences
from official import BUILDERS, Frame, reference_frame
from peft import PeftConfig
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mmtrackers import (
    LoRATForTracking,
    ODTrackForTracking,
    OSTrackForTracking,
    PATrackForTracking,
    SDMoEAForTracking,
    SEATrackForTracking,
    SPMTrackForTracking,
    TrackerPreTrainedModel,
)
from mmtrackers.cli.ending import run_script
from mmtrackers.modeling.clips import forward_clip
from mmtrackers.modeling.packing import PackedLinear
from mmtrackers.training.optimization import cast_frozen

TRACKERS = {
    "lorat": LoRATForTracking,
    "odtrack": ODTrackForTracking,
    "ostrack": OSTrackForTracking,
    "patrack": PATrackForTracking,
    "sdmoea": SDMoEAForTracking,
    "seatrack": SEATrackForTracking,
    "spmtrack": SPMTrackForTracking,
}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_channels": 16}


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # opaque layouts have no storage
        return id(tensor)


class LaunchCounter(TorchDispatchMode):
    """Counts dispatched operations, by name, that are neither views of an argument nor bare allocations.

    Example:
        >>> with LaunchCounter() as counter:
        ...     _ = torch.ones(2, 2).t().exp()
        >>> counter.launches
        {'aten::ones': 1, 'aten::exp': 1}
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        given = {_memory(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = [_memory(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        is_view = bool(made) and not func._schema.is_mutable and given.issuperset(made)
        if not is_view and not name.startswith(("aten::empty", "aten::new_empty")):
            self.launches[name] = self.launches.get(name, 0) + 1
        return result


def count_launches(frame: Frame) -> int:
    """Operations that one call of `frame` (forward and decoding) dispatches, views not counted."""
    with torch.no_grad(), LaunchCounter() as counter:
        frame()
    return sum(counter.launches.values())


def count_macs(frame: Frame) -> int:
    """Multiply-adds of one call's matrix products and convolutions; of a model that is not packed."""
    # torch does not count the CPU's fused attention, so its products are made visible
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        frame()
    return counter.get_total_flops() // 2


def saved_bytes(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for backward: each storage once, the model's own tensors not counted.

    Args:
        model (`nn.Module`): whose parameters and buffers do not count.
        loss: runs the forward pass.
    """
    own = {_memory(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (place := _memory(tensor)) not in own:
            kept[place] = tensor.untyped_storage()  # held, so that no later tensor gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = loss()
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total


def build(system: str, tiny: bool = False, adapter: PeftConfig | None = None, **fields) -> TrackerPreTrainedModel:
    """A tracker of random weights, with its published adapter or `adapter`; without elimination unless `fields` say
    so."""
    tracker = TRACKERS[system]
    known = tracker.config_class.__dataclass_fields__
    defaults = {"elimination_layers": []} | (SMALL if tiny else {})
    model = tracker(tracker.config_class(**({n: v for n, v in defaults.items() if n in known} | fields))).eval()
    if tracker.default_adapter is not None:
        model.requires_grad_(False)
        model.add_adapter(adapter or tracker.default_adapter())
    return model.eval()


def crops(model: TrackerPreTrainedModel, batch: int = 1, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Random search `[B, S, 3, H, W]` and template `[B, T, S, 3, h, w]` crops for a model, and the templates' masks
    `[B, T, g, g]` if it reads them."""
    c, templates = model.config, getattr(model.config, "num_templates", 1)
    search = torch.randn(batch, c.streams, 3, c.search_size, c.search_size, dtype=dtype)
    template = torch.randn(batch, templates, c.streams, 3, c.template_size, c.template_size, dtype=dtype)
    if not model.reads_template_mask:
        return search, template
    return search, template, torch.ones(batch, templates, c.template_grid, c.template_grid, dtype=torch.long)


def frame_of(model: TrackerPreTrainedModel, dtype: torch.dtype | None = None, **kwargs) -> Frame:
    """One frame of tracking: forward (`kwargs` go there) with the templates' embedding and the state of the frame
    before at hand, then decoding under a window."""
    search, *template = crops(model, dtype=dtype)
    window = torch.rand(model.config.search_grid, model.config.search_grid)
    with torch.no_grad():
        embedded = model.embed_template(*template)
        state = model(search, embedded, **kwargs).state
    return lambda: model.decode(model(search, embedded, state=state, **kwargs), window)


def training_inputs(model: TrackerPreTrainedModel, batch: int = 2, frames: int = 1) -> dict[str, Tensor]:
    """Arguments of a training step: pairs, or clips of several search frames."""
    search, *template = crops(model, batch, model.dtype)
    labels = torch.tensor([[0.4, 0.4, 0.2, 0.2]]).repeat(batch, 1)
    if frames > 1:
        search, labels = (torch.stack([crop] * frames, 1) for crop in (search, labels))
    return {"search": search, "labels": labels} | dict(zip(("template", "template_mask"), template, strict=False))


def training_bytes(
    model: TrackerPreTrainedModel,
    batch: int = 2,
    frames: int = 1,
    checkpointing: bool = False,
    autocast: bool = False,
) -> int:
    """Bytes that a training step of a tracker saves for backward, on pairs or on clips of several search frames; with
    `checkpointing`, what it keeps between layers."""
    inputs = training_inputs(model, batch, frames)
    if checkpointing:
        model.activation_checkpointing_enable()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total = saved_bytes(model.train(), lambda: model(**inputs).loss)
    if checkpointing:
        model.activation_checkpointing_disable()
    model.eval()
    return total


def peak_growth(call: Callable[[], object]) -> int | None:
    """Bytes by which this process grows at most during a call; None where the system does not tell (not Linux)."""
    status = Path("/proc/self/status")
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else a call would reuse what the one before has freed
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])
        call()
        return 1024 * max(0, int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) - before)
    except OSError:
        return None


@dataclass
class TrainingStep:
    """Forward and backward, without the optimizer, in one of the ways that `examples/finetune.py` offers."""

    system: str
    variant: str
    model: TrackerPreTrainedModel
    inputs: dict[str, Tensor]
    saved: int
    peak: int | None = None
    times: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self) -> None:
        self.model.train()
        if self.variant == "checkpointing":
            self.model.activation_checkpointing_enable()
        if self.variant == "frame by frame":
            forward_clip(self.model, **self.inputs, backward=Tensor.backward)
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.variant == "bf16"):
                loss = self.model(**self.inputs).loss
            loss.backward()
        if self.variant == "checkpointing":
            self.model.activation_checkpointing_disable()
        self.model.zero_grad()


def training_steps(system: str, tiny: bool) -> list[TrainingStep]:
    """A system's training step: plain, and with each option that makes it cheaper."""
    model, size = build(system, tiny), {"batch": 1, "frames": 2} if system == "spmtrack" else {}
    inputs = training_inputs(model, **size)
    steps = [TrainingStep(system, "plain", model, inputs, training_bytes(model, **size))]
    steps.append(
        TrainingStep(system, "checkpointing", model, inputs, training_bytes(model, **size, checkpointing=True))
    )
    if size:
        steps.append(TrainingStep(system, "frame by frame", model, inputs, training_bytes(model, batch=1)))
    if model.has_adapter:  # of a base all weights are trained
        half = build(system, tiny)
        cast_frozen(half, torch.bfloat16)
        inputs = training_inputs(half, **size)
        steps.append(TrainingStep(system, "frozen bf16", half, inputs, training_bytes(half, **size)))
        # the adapter's products in bf16 as well
        steps.append(TrainingStep(system, "bf16", half, inputs, training_bytes(half, **size, autocast=True)))
    return steps


def report_training(systems: list[str], rounds: int, tiny: bool) -> None:
    """Prints step time, bytes saved for backward and growth of the process, of one system after the other."""
    head = "".join(f"{name:>10}" for name in ("ms", "CPU ms", "of plain", "saved MB", "peak MB"))
    print(f"{'system':10}{'training step':18}{head}")
    for system in systems:
        steps = training_steps(system, tiny)
        for step in steps:
            step()
            step.peak = peak_growth(step)
        for _ in range(rounds):
            for step in steps:
                step.times.append(clock(step))
        for step in steps:
            wall, cpu = medians(step.times)
            peak, ratio = "" if step.peak is None else f"{step.peak / 1e6:.0f}", compared(step.times, steps[0].times)
            cells = f"{1e3 * wall:10.0f}{1e3 * cpu:10.0f}{ratio:10.2f}{step.saved / 1e6:10.0f}{peak:>10}"
            print(f"{system:10}{step.variant:18}{cells}", flush=True)


@dataclass
class Row:
    """One line of the table: what runs, in which format, and what was measured."""

    system: str
    variant: str
    frame: Frame
    dtype: torch.dtype = torch.float32
    launches: int = 0
    macs: int = 0
    saved: int | None = None
    times: list[tuple[float, float]] = field(default_factory=list)


def tracker_rows(system: str, tiny: bool, **fields) -> list[Row]:
    """Plain, packed and packed bf16 rows of a system; of LoRAT also one with its adapter merged and nothing else."""
    plain = build(system, tiny, **fields)
    frame = frame_of(plain)
    with torch.no_grad():
        frame()
    macs = count_macs(frame)
    saved = training_bytes(plain, **({"batch": 1, "frames": 2} if system == "spmtrack" else {}))
    rows = [Row(system, "plain", frame, launches=count_launches(frame), macs=macs, saved=saved)]
    if system == "lorat":
        frame = frame_of(build(system, tiny, **fields).merge_and_unload())
        macs = count_macs(frame)
        rows.append(Row(system, "merged", frame, launches=count_launches(frame), macs=macs))
    for variant, dtype in (("packed", torch.float32), ("packed bf16", torch.bfloat16)):
        model = build(system, tiny, **fields).to(dtype)
        for parameter in model.parameters():
            if model.has_adapter and parameter.requires_grad:  # these stay in float32, as loading with dtype= does
                parameter.data = parameter.data.float()
        model.pack()
        frame = frame_of(model, dtype)
        rows.append(Row(system, variant, frame, dtype, count_launches(frame), macs))
        gc.collect()
    return rows


def calibrations(tiny: bool) -> dict[tuple[torch.dtype, str], tuple[Frame, int]]:
    """Matrix products of a ViT-B block, stock and laid out beforehand, with their multiply-adds."""
    shapes = [(64, 64, 64)] if tiny else [(640, 3072, 768), (640, 768, 3072)]
    found: dict[tuple[torch.dtype, str], tuple[Frame, int]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for rows, inner, outer in shapes:
            x = torch.randn(rows, inner).to(dtype)
            weight = torch.randn(outer, inner).to(dtype)
            packed, label = PackedLinear(weight, None), f"{rows}x{inner}x{outer}"
            for kind, product in (("stock", lambda x=x, w=weight: x @ w.T), ("packed", lambda x=x, p=packed: p(x))):
                found[dtype, f"{kind} {label}"] = (product, rows * inner * outer)
    return found


def clock(call: Frame, repeats: int = 1) -> tuple[float, float]:
    """Seconds per call on the wall, and of this process's CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


def medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    """Of the wall and of the CPU seconds that `clock` measured."""
    wall, cpu = zip(*times, strict=True)
    return statistics.median(wall), statistics.median(cpu)


def seconds_of(times: list[tuple[float, float]]) -> float:
    """What ratios are made of: CPU time of one thread; of more, which wait for each other by spinning, wall time."""
    return medians(times)[torch.get_num_threads() == 1]


def compared(times: list[tuple[float, float]], others: list[tuple[float, float]]) -> float:
    """How long the first took, in units of the second."""
    return seconds_of(times) / seconds_of(others)


@torch.no_grad()
def measure(rows: list[Row], rounds: int, tiny: bool) -> dict[torch.dtype, float]:
    """Times every row and every calibration in turn; returns the best rate per format in multiply-adds a second."""
    products = calibrations(tiny)
    times: dict[tuple[torch.dtype, str], list[tuple[float, float]]] = {key: [] for key in products}
    for row in rows:
        row.frame()
    for call, _ in products.values():
        call()
    for _ in range(rounds):
        for row in rows:
            row.times.append(clock(row.frame))
        for key, (call, _) in products.items():
            times[key].append(clock(call, 5))
    best: dict[torch.dtype, float] = {}
    for key, (_, macs) in products.items():
        best[key[0]] = max(best.get(key[0], 0.0), macs / seconds_of(times[key]))
    return best


def report(rows: list[Row], best: dict[torch.dtype, float]) -> None:
    """Prints the table."""
    for dtype, rate in best.items():
        print(f"best matrix product, {str(dtype).removeprefix('torch.')}: {2 * rate / 1e9:.1f} GFLOP/s")
    official = next((row for row in rows if row.variant == "reference"), None)
    head = ("system", "variant", "ms/frame", "CPU ms", "GMAC", "floor ms", "of floor", "speed-up", "launches")
    lines = [(*head, "saved MB") if official is None else (*head, "saved MB", "official / it")]
    for row in rows:
        floor, (wall, cpu) = row.macs / best[row.dtype], medians(row.times)
        plain = next(r for r in rows if r.system == row.system and r.variant == "plain")
        line = (
            row.system, row.variant, f"{1e3 * wall:.1f}", f"{1e3 * cpu:.1f}", f"{row.macs / 1e9:.2f}",
            f"{1e3 * floor:.1f}", f"{100 * floor / seconds_of(row.times):.0f} %",
            f"{compared(plain.times, row.times):.2f}x", str(row.launches),
            "" if row.saved is None else f"{row.saved / 1e6:.0f}",
        )  # fmt: skip
        lines.append(line if official is None else (*line, f"{compared(official.times, row.times):.2f}"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = enumerate(zip(line, widths, strict=True))
        print("  ".join(text.ljust(width) if i < 2 else text.rjust(width) for i, (text, width) in cells))
    kind = "CPU time" if torch.get_num_threads() == 1 else "wall time"
    print(f"ratios are of {kind}; speed-up: against the plain row of this run; saved MB: kept for backward by a")
    print("training step at batch 2")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=sorted(TRACKERS), help="only this one")
    parser.add_argument("--rounds", type=int, default=7, help="times that every row has its turn")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's own choice)")
    parser.add_argument("--tiny", action="store_true", help="small random models: a smoke run")
    parser.add_argument("--training", action="store_true", help="the training step in place of the frames")
    parser.add_argument("--sequences", nargs="+", help="real sequences in place of random frames: FOLDER[:rgb|:x]")
    parser.add_argument("--reference", type=Path, help="checkout of --system's official code, run in turn")
    parser.add_argument("--reference-config", help="its experiment file, inside the checkout")
    parser.add_argument("--reference-builder", help="its builder, module:function")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.reference and (options.training or options.sequences):
        parser.error("--reference is for single frames: leave out --training and --sequences")
    if options.reference and not options.system:
        parser.error("--reference needs --system: which tracker the checkout is of")
    if options.reference and options.system not in BUILDERS:
        parser.error(f"--reference knows the official code of {', '.join(BUILDERS)}, not of {options.system}")
    if options.threads:
        torch.set_num_threads(options.threads)
        cv2.setNumThreads(options.threads)
    torch.manual_seed(0)
    if options.sequences:
        report_sequences(options.sequences, 3 if options.tiny else None)
        return
    systems = [options.system] if options.system else sorted(TRACKERS)
    if options.training:
        report_training(systems, options.rounds, options.tiny)
        return
    reference, fields = None, {}
    if options.reference:
        builder, config = options.reference_builder, options.reference_config
        reference, fields = reference_frame(options.reference.expanduser(), options.system, builder, config)
    rows: list[Row] = []
    for system in systems:
        rows += tracker_rows(system, options.tiny, **fields)
    if reference is not None:
        macs = count_macs(reference)
        rows.append(Row(options.system, "reference", reference, launches=count_launches(reference), macs=macs))
    report(rows, measure(rows, options.rounds, options.tiny))


if __name__ == "__main__":
    run_script(main)
