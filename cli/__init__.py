"""The command line: one file a command. It parses, calls the engine and shows; no tensor is touched here."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the process was started with, and end with its exit code."""
    try:
        from chansurg.cli.application import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while starting, before the command could take care of it
        print("Interrupted; nothing was written.", file=sys.stderr)
        code = 130
    if code == 130:
        # Python notes an interrupt inside exec() on a text, as dataclasses use it, and would end by the signal although it was handled.
        # Running another text clears the note.
        exec("")
    sys.exit(code)
