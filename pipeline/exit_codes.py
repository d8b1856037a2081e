"""Errors to messages and exit codes: bad input never shows a traceback."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from kdpipe.targets.errors import KdpipeError, UsageError

GATE_FAILED, WRONG_INPUT, STAGE_FAILED, INTERRUPTED, TERMINATED = 1, 2, 3, 130, 143


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): handled like Ctrl-C."""


@contextmanager
def exit_codes(debug: bool = False) -> Iterator[None]:
    """Turn every error of the block into a message on stderr and an exit code.

    2: the command line or a file that the user wrote is wrong. 3: something failed. 130 and 143: interrupted by
    Ctrl-C and by SIGTERM.

    Args:
        debug: show the traceback too.
    """
    try:
        with termination_as_interrupt():
            yield
    except Terminated:
        _say("interrupted", None)
        raise typer.Exit(TERMINATED) from None
    except KeyboardInterrupt:
        _say("interrupted", None)
        raise typer.Exit(INTERRUPTED) from None
    except KdpipeError as error:
        _say(str(error), error if debug else None)
        raise typer.Exit(WRONG_INPUT if isinstance(error, UsageError) else STAGE_FAILED) from None
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        from kdpipe.pipeline.runner import describe_failure

        _say(describe_failure(error), error if debug else None)
        if not debug:
            typer.echo("Run with --debug to see the traceback, where the command has it.", err=True)
        raise typer.Exit(STAGE_FAILED) from None


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Raise Terminated where the process is asked to end, so that nothing is left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(message: str, error: BaseException | None) -> None:
    if error is not None:
        traceback.print_exception(error, file=sys.stderr)
    for line in message.splitlines():
        typer.echo(f"kdpipe: {line}", err=True)
