"""`mmtrackers finetune`: train on one's own sequences."""

import typer

OWN_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def finetune(context: typer.Context) -> None:
    """Train an adapter on a frozen tracker, or a whole base; --help lists the options.

    The loop, to read and change: mmtrackers/training/loop.py. Many processes: accelerate launch -m mmtrackers.cli
    finetune ...
    """
    from mmtrackers.finetune import main

    main(context.args)
