"""
Trains an adapter on a frozen tracker, or a whole base, with accelerate.

    # adapter for thermal on an OSTrack base, SEATrack's recipe
    accelerate launch examples/finetune.py --preset seatrack-rgbt --model org/ostrack-base-256 --data LasHeR/train \
        --output out/rgbt
    # a base on composed pictures, one hour in bf16, from the start weights of examples/new_tiny.py; the same command
    # again goes on where it stopped, and out/tiny/checkpoints/*/model can be tried meanwhile
    python examples/finetune.py --model out/start --train-base --synthetic pictures --output out/tiny \
        --mixed-precision bf16 --lr 1e-3 --schedule cosine --max-minutes 60 --resume

`--batch-size` counts the pairs of an optimizer step, over all processes and passes. Which pair comes when depends on
seed, epoch and number only: not on workers, and not on how pairs are spread over processes.
Over several processes the loss is the mean over processes; it equals one process's loss on the whole batch as long as
every process has the same number of peaks on its target maps (it divides the focal term): one a pair from 8 cells on.
"""

from mmtrackers.cli.ending import run_script
from mmtrackers.finetune import main

if __name__ == "__main__":
    run_script(main)
