"""Runs the training script under FSDP2 on CPU processes.

torch shards on the CPU over gloo; accelerate takes FSDP for accelerators only, and would go on with DDP in silence.
Here its state is told that the CPU is one.
"""

from typing import Any

from accelerate import DistributedType
from accelerate.state import AcceleratorState

from mmtrackers.training.state import is_sharded

plain = AcceleratorState.__init__


def with_fsdp(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    plugin = fsdp_plugin or self._shared_state.get("fsdp_plugin")
    plain(self, *args, **kwargs)  # makes a copy of the state below it, each time
    if self.mixed_precision != "no" and plugin.mixed_precision_policy is None and not hasattr(self, "fsdp_plugin"):
        plugin.set_mixed_precision(self.mixed_precision)  # as on an accelerator
    self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin


if __name__ == "__main__":
    from mmtrackers import finetune

    AcceleratorState.__init__ = with_fsdp
    trainer = finetune.main()
    assert is_sharded(trainer.unwrapped) and trainer.accelerator.is_fsdp2
