"""The reader of official checkpoint files: it reads what torch.save wrote, runs nothing, and says what is wrong."""

import os
import re
import zipfile
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
    torch.save({"weights": {"w": torch.ones(1)}, "epoch": 1}, other)
    with pytest.raises(ValueError, match=r"no entry 'net' or 'model' or 'state_dict' .*; there are: weights, epoch"):
        load_official(other)
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


@pytest.mark.parametrize("entry", ["net", "model", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_takes_what_people_have(tmp_path: Path, entry: str | None, prefix: str) -> None:
    net = {f"{prefix}a.weight": torch.ones(2), f"{prefix}module.b": torch.zeros(1)}
    torch.save({entry: net, "epoch": 3} if entry else net, tmp_path / "a.pth")
    facts: list[str] = []
    assert list(load_official(tmp_path / "a.pth", facts=facts)) == ["a.weight", "module.b"]
    assert len(facts) == (entry != "net") + prefix.count(".")


class Tensor:
    """Pickles as a tensor of a given form over a storage of four numbers."""

    def __init__(self, size: tuple, stride: tuple, offset: int = 0) -> None:
        self.form = torch.arange(4.0).untyped_storage(), offset, size, stride

    def __reduce__(self) -> tuple:
        storage, *form = self.form
        return torch._utils._rebuild_tensor_v2, (torch.TypedStorage(wrap_storage=storage, dtype=torch.float32), *form)


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor((1000, 1000), (0, 0)),  # sixteen bytes that claim four million
        Tensor((2, 4), (0, 1)),
        Tensor((3, 3), (1, 1)),  # overlapping rows: more numbers than there are
        Tensor((2, 2), (2, 2)),  # the last number would lie behind the end
        Tensor((4,), (1,), 1),
        Tensor((2, -2), (1, 1)),
        Tensor((4,), (1, 1)),
        Tensor((2.0,), (1,)),
        Tensor((((2,),),), (1,)),
    ],
    ids=lambda tensor: str(tensor.form[2:]),
)
def test_forms_that_do_not_fit_are_refused(tmp_path: Path, tensor: Tensor) -> None:
    torch.save({"net": {"w": tensor}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"entry 'w' of shape .* does not fit its 4 numbers"):
        load_official(tmp_path / "a.pth")


def test_no_numbers_under_a_shape(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"net": {"w": torch.empty(0)}}, path)
    pickled = zipfile.ZipFile(path).read("a/data.pkl")
    changed = tmp_path / "b.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            assert pickled.count(b"K\x00\x85") == 1  # the shape (0,)
            data = old.read(name)
            new.writestr(name, data.replace(b"K\x00\x85", b"K\x64\x85") if name.endswith(".pkl") else data)
    with pytest.raises(ValueError, match=r"entry 'w' of shape \[100\] does not fit its 0 numbers"):
        load_official(changed)


@pytest.mark.parametrize("key", [1, None, (1, 2), 1.5], ids=str)
def test_names_that_are_no_text_are_refused(tmp_path: Path, key: object) -> None:
    torch.save({"net": {"1": torch.ones(1), key: torch.zeros(1)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="for a name, expected text"):
        load_official(tmp_path / "a.pth")


def test_small_files_do_not_grow(tmp_path: Path) -> None:
    """Compressed members, thousands of views, claims of length and keys that take forever to hash."""
    path = tmp_path / "a.pth"
    storage = torch.zeros(10_000)
    torch.save({"net": {f"view{i}": storage[:] for i in range(100)}}, path)
    with pytest.raises(ValueError, match="claim more than 4 times the numbers in the file"):
        load_official(path)
    torch.save({"net": {"w": storage}}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match="is a compressed archive"):
        load_official(tmp_path / "b.pth")
    # bytes of which there are fewer than said; a tuple of tuples, each twice in the next, as a key
    for pickled in (b"\x96" + b"\xff" * 7 + b"\x00.", b"})" + b"2\x86" * 200 + b"K\x01s."):
        (tmp_path / "c.pth").write_bytes(b"\x80\x05" + pickled)
        with pytest.raises(ValueError, match=r"cut off or damaged|is a bare pickle"):
            load_official(tmp_path / "c.pth")
