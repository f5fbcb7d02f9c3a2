"""`shelflife completion`: the script that lets a shell complete commands, options and files."""

from __future__ import annotations

import argparse
import sys


def do_completion(given: argparse.Namespace) -> int:
    """Write the shell's script (made by shtab from the command line's own parser) to stdout."""
    import shtab

    from shelflife.cli import parser

    whole = parser()
    _files(whole)
    sys.stdout.write(shtab.complete(whole, shell=given.shell) + "\n")
    return 0


def _files(parser: argparse.ArgumentParser) -> None:
    """Mark the arguments that are files."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _files(each)
        elif action.metavar == "FILE" or str(action.help).startswith(("Parquet", ".skops")):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
