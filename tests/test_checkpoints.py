"""The reader of official checkpoint files: it reads what torch.save wrote, runs nothing, and says what is wrong."""

import os
import re
from pathlib import Path

import pytest
import torch
from official_names import save_official
from safetensors.torch import save_file

from mmtrackers.conversion.reader import load_official


def a_net() -> dict[str, torch.Tensor]:
    """Every kind of tensor that occurs: views, other dtypes, scalars, empty ones, parameters."""
    table = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "plain": torch.randn(3, 5),
        "row": table[1],
        "turned": table.T,
        "half": torch.randn(4).half(),
        "counter": torch.tensor(7),
        "nothing": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "flags": torch.tensor([True, False]),
        "bfloat": torch.randn(3).bfloat16(),
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_what_torch_saved(tmp_path: Path, legacy: bool) -> None:
    net = a_net()
    loaded = load_official(save_official(tmp_path / "a.pth.tar", net, legacy=legacy))
    assert list(loaded) == list(net)
    for name, tensor in net.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].is_contiguous(), name
        assert torch.equal(loaded[name], tensor), name


def test_reads_safetensors(tmp_path: Path) -> None:
    net = {"w": torch.randn(3, 2)}
    save_file(net, tmp_path / "a.safetensors")
    assert torch.equal(load_official(tmp_path / "a.safetensors")["w"], net["w"])


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def hostile(flag: Path) -> dict[str, object]:
    """Payloads that would leave the file `flag` if any of what they name were run."""
    writes = f"open({str(flag)!r}, 'w').close()"
    return {
        "system": Calls(os.system, f"touch {flag}"),
        "exec": Calls(exec, writes),
        "eval": Calls(eval, writes),
        "open": Calls(open, str(flag), "w"),
        "path": Calls(Path.touch, flag),
        "nested": Calls(getattr, Calls(__import__, "os"), "system"),
        "load": Calls(torch.load, str(flag)),
        "inside": [{"deep": (Calls(os.system, f"touch {flag}"),)}],
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", sorted(hostile(Path("flag"))))
def test_hostile_pickle_runs_nothing(tmp_path: Path, kind: str, legacy: bool) -> None:
    flag = tmp_path / "ran"
    net = {"w": torch.ones(2)}
    path = save_official(tmp_path / "a.pth.tar", net, legacy=legacy, stats=hostile(flag)[kind])
    assert torch.equal(load_official(path)["w"], net["w"])
    path = save_official(tmp_path / "b.pth.tar", {**net, "v": hostile(flag)[kind]}, legacy=legacy)
    with pytest.raises(ValueError, match=r"the weights' entry 'v' is .*, not a plain tensor"):
        load_official(path)
    assert not flag.exists()


def test_control_the_payload_works(tmp_path: Path) -> None:
    """Without the restricted reader the same file does run: otherwise the test above would prove nothing."""
    flag = tmp_path / "ran"
    path = save_official(tmp_path / "a.pth.tar", {}, settings=None, stats=hostile(flag)["open"])
    torch.load(path, weights_only=False)
    assert flag.exists()


@pytest.mark.parametrize("keep", [2, 30, 200, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["archive", "legacy", "safetensors"])
def test_truncated_file(tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    net = {f"layer{index}.weight": torch.randn(20, 20) for index in range(4)}
    if kind == "safetensors":
        save_file(net, path)
    else:
        save_official(path, net, legacy=kind == "legacy", optimizer=None)
    data = path.read_bytes()
    path.write_bytes(data[: keep if keep > 1 else int(keep * len(data))])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is (cut off|damaged)"):
        load_official(path)


def test_changed_byte_in_the_archive_is_noticed(tmp_path: Path) -> None:
    path = save_official(tmp_path / "a.pth", {"w": torch.full((1000,), 3.0)})
    data = bytearray(path.read_bytes())
    data[data.find(torch.full((8,), 3.0).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cut off or damaged \(BadZipFile: Bad CRC-32 for file .*data/\d+"):
        load_official(path)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save({"model": {"w": torch.ones(1)}, "epoch": 1}, other)
    with pytest.raises(ValueError, match=r"no entry 'net' with the weights; there are: model, epoch"):
        load_official(other)
    assert load_official(other, entry="model")["w"].item() == 1
    torch.save([1], other)
    with pytest.raises(ValueError, match="holds a list, not a dictionary"):
        load_official(other)
    torch.save({"net": torch.nn.Linear(1, 1)}, other)
    with pytest.raises(ValueError, match=r"\('net'\) there is <torch.nn.modules.linear.Linear, not loaded>"):
        load_official(other)
    page = tmp_path / "page.pth"
    page.write_text("<!DOCTYPE html>")
    with pytest.raises(ValueError, match="is not a checkpoint: it begins with b'<!DO'"):
        load_official(page)
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.pth"):
        load_official(tmp_path / "nowhere.pth")
