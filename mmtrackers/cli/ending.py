"""How a command ends: errors that a user can mend become one line, signals an orderly end."""

import dis
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import typer
from typer.core import TyperGroup


def interrupt_on_signals() -> None:
    """Makes SIGTERM and SIGHUP end the process as Ctrl-C does; a signal that is ignored (`nohup`) stays so."""

    def interrupt(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, interrupt)


def exit_code_of(interrupt: KeyboardInterrupt) -> int:
    """What a shell reports of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def message_for_user(error: Exception) -> str | None:
    """The line to show of an error that a user can mend; None for a fault of the program.

    Of a `ValueError` somebody must have written the message, with `raise`. One that comes out of a library's C code
    (shapes that do not fit, `zip(strict=True)`) is a fault of ours; not so text that is no UTF-8.

    Example:
        >>> message_for_user(FileNotFoundError(2, "No such file", "a.mp4"))
        "[Errno 2] No such file: 'a.mp4'"
        >>> message_for_user(KeyError("box")) is None
        True
    """
    from huggingface_hub.errors import StrictDataclassError

    if isinstance(error, StrictDataclassError):
        # a config whose fields do not fit each other: an error of its own kind, with the reason as its cause
        return str(error.__cause__ or error)
    plain = isinstance(error, (OSError, UnicodeError, FloatingPointError))
    if plain or (isinstance(error, ValueError) and _raised_on_purpose(error)):
        return str(error) or type(error).__name__
    return None


def _raised_on_purpose(error: Exception) -> bool:
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and dis.opname[place.tb_frame.f_code.co_code[place.tb_lasti]] == "RAISE_VARARGS"


def as_options(message: str, options: Mapping[str, str]) -> str:
    """A message with the arguments of Python functions that it names as the `options` of a command.

    Example:
        >>> as_options('Pass base_model="org/name" or token=.', {"base_model": "--base-model"})
        'Pass --base-model org/name or token=.'
    """

    def option(found: re.Match[str]) -> str:
        name, _, quoted, plain = found.groups()
        return f"{options[name]} {quoted or plain or ''}".rstrip() if name in options else found[0]

    return re.sub(r"""(?<![\w/.-])([a-z_]+)=(?:(["'])(.*?)\2|([\w./-]*\w))?""", option, message)


def quiet_loading() -> None:
    """Models load without transformers' own progress bar, which would also go into files and pipes."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def fail(message: str) -> None:
    """Ends the command with one line on the error output and exit code 2."""
    typer.echo("error: " + " ".join(message.split()), err=True)
    raise typer.Exit(2)


def run_script(main: Callable[[], object]) -> None:
    """Runs the main function of a script, which ends as the commands do; of several processes the first one speaks."""
    try:
        main()
    except Exception as error:
        message = message_for_user(error)
        if message is None:
            raise
        if os.environ.get("RANK", "0") == "0":
            print("error: " + " ".join(message.split()), file=sys.stderr)
        raise SystemExit(2) from None


class Commands(TyperGroup):
    """The commands, with one way to end for all of them."""

    def invoke(self, ctx: typer.Context) -> Any:
        """Runs the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(exit_code_of(interrupt)) from None
        except BrokenPipeError:  # `| head` has seen enough
            raise
        except Exception as error:
            message = None if ctx.params.get("debug") else message_for_user(error)
            if message is None:
                raise
            fail(as_options(message, self._options(ctx)))

    def _options(self, ctx: typer.Context) -> dict[str, str]:
        """The options of the command that was called, or of all in its group, by the names of their parameters."""
        called = self.commands.get(ctx.invoked_subcommand, self)
        inner = getattr(called, "commands", {"": called}).values()
        parameters = [parameter for command in inner for parameter in command.params]
        return {p.name: max(p.opts, key=len) for p in parameters if p.param_type_name == "option"}
