"""The configurations for more than one device: accelerate reads them, and the documented commands name them."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
from accelerate.checkpointing import load_accelerator_state, save_accelerator_state
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from mmtrackers import finetune

FOLDER = Path(__file__).parents[1] / "examples" / "accelerate"
# kind of run, processes in all, machines
EXPECTED = {
    "one_gpu.yaml": ("NO", 1, 1),
    "eight_gpus.yaml": ("MULTI_GPU", 8, 1),
    "fsdp2.yaml": ("FSDP", 8, 1),
    "two_nodes.yaml": ("MULTI_GPU", 16, 2),
}


def documented() -> list[tuple[str, str]]:
    """File of a configuration and arguments of `accelerate launch`, for each command in the folder's README."""
    text = re.sub(r"\\\n\s*", "", (FOLDER / "README.md").read_text())
    commands = re.findall(r"^accelerate launch --config_file examples/accelerate/(\S+) (.*)$", text, re.M)
    return [(name, f"--config_file {FOLDER / name} {rest}") for name, rest in commands]


def test_every_configuration_has_a_command():
    assert {name for name, _ in documented()} == EXPECTED.keys() == {path.name for path in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize(("name", "command"), documented())
def test_accelerate_reads_it_and_the_script_takes_its_options(name, command):
    config = load_config_from_file(str(FOLDER / name))
    assert (config.distributed_type.value, config.num_processes, config.num_machines) == EXPECTED[name]
    arguments = launch_command_parser().parse_args(shlex.split(command))
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.use_fsdp == (name == "fsdp2.yaml") and arguments.num_processes == EXPECTED[name][1]
    if arguments.use_fsdp:
        assert arguments.fsdp_version == 2 and arguments.fsdp_auto_wrap_policy == "TRANSFORMER_BASED_WRAP"
    assert (Path(__file__).parents[1] / arguments.training_script).is_file()
    options = finetune.parse(arguments.training_script_args)
    parts = arguments.num_processes * options.gradient_accumulation
    assert options.samples_per_pass(arguments.num_processes) * parts == options.batch_size
    assert options.mixed_precision == "bf16"  # the configuration leaves it to the script


def test_the_state_functions_take_what_checkpoints_of_shards_pass() -> None:
    """They are not among accelerate's documented functions; `training/state.py` calls them by these names."""
    taken = set(inspect.signature(save_accelerator_state).parameters)
    assert taken >= {"output_dir", "model_states", "optimizers", "schedulers", "dataloaders", "process_index", "step"}
    taken = set(inspect.signature(load_accelerator_state).parameters)
    assert taken >= {"input_dir", "models", "optimizers", "schedulers", "dataloaders", "process_index", "scaler"}
