"""All commands as one program."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Annotated

import typer

from chansurg.cli.command import exposed
from chansurg.cli.failures import INTERRUPTED, reader_gone, stdout_lost, tell_interrupted
from chansurg.cli.output_file import note_kept, note_written
from chansurg.cli.reporting import Report
from chansurg.cli.streams import prepare_streams
from chansurg.surgery.errors import InputError

# typer brings click with it, in some versions under a name of its own; this is its class either way.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

COMMANDS = (
    "inspect",
    "recipes",
    "convert",
    "finetune",
    "evaluate",
    "slice",
    "verify",
    "bench",
    "export",
    "diff",
    "history",
    "undo",
    "report",
)
"""Each is the function of that name in the file of that name."""

HELP = "Model surgery for pretrained vision networks: smaller, measurably faster, still fine-tunable."


def application() -> typer.Typer:
    """The program, with the options of all installed recipes."""
    app = typer.Typer(
        help=HELP,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(_top)
    for name in COMMANDS:
        module = import_module(f"chansurg.cli.{name}")
        examples = "\n\n".join(f"  {line}" for line in module.EXAMPLES)
        more = module.PARAMETERS() if hasattr(module, "PARAMETERS") else ()
        command = exposed(getattr(module, name), more)
        app.command(name, epilog=f"[dim]Examples[/dim]\n\n{examples}")(command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chansurg {version('chansurg')}")
        raise typer.Exit


def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing but the interpreter's own end raises from here."""
    prepare_streams()
    note_written(None)
    note_kept(None)
    code = 0
    try:
        code = application()(list(arguments), prog_name="chansurg", standalone_mode=False) or 0
        sys.stdout.flush()
    except UsageError as error:
        report = Report(as_json="--json" in arguments)
        return _usage(report, error)
    except BrokenPipeError:
        return reader_gone()
    except OSError as error:
        return stdout_lost(error, told=bool(code))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # what typer makes of an interrupt
        return tell_interrupted(Report(as_json="--json" in arguments))
    return code if isinstance(code, int) else 0


def _usage(report: Report, error: Exception) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "chansurg"
    message = str(error.format_message())  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":
        report.out.print(message)
        return InputError.exit_code
    report.error(
        InputError(message, where=f"the command line of `{command}`", not_done="Nothing was done.", to_do=f"See `{command} --help`.")
    )
    return InputError.exit_code
