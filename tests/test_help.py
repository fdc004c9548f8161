"""Every command and script explains itself, and says in one line what a user can mend."""

import subprocess
import sys

import pytest
from example_scripts import EXAMPLES, load
from typer.testing import CliRunner

from mmtrackers import cli, finetune
from mmtrackers.cli.ending import run_script

SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text())
COMMANDS = [command.name or command.callback.__name__ for command in cli.app.registered_commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands(command, capsys):
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0 and "--" in result.output + capsys.readouterr().out, result.output


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_scripts(script, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    module = load(script)
    # one of them stands without this package
    assert script == "run_onnx" or "run_script(" in (EXAMPLES / f"{script}.py").read_text()
    with pytest.raises(SystemExit) as end:
        module.typer.run(module.main) if hasattr(module, "typer") else module.main()
    said = capsys.readouterr().out
    assert end.value.code == 0 and "--help" in said
    assert script != "finetune" or "80 %" in said


def test_a_script_says_in_one_line_what_is_wrong(tmp_path):
    command = [sys.executable, str(EXAMPLES / "finetune.py"), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: Say what to train: --model")


def test_one_of_several_processes_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        run_script(lambda: finetune.main(["--output", "x"]))
    assert end.value.code == 2 and capsys.readouterr().err == ""


def test_faults_of_the_program_are_not_dressed_as_the_users():
    with pytest.raises(KeyError):
        run_script(lambda: {}["nothing"])
