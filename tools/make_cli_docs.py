"""Write the command-line reference from the help texts, so that it cannot drift: python tools/make_cli_docs.py docs/cli.md"""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

from latentsync.cli import app

HEAD = """# The command line

Generated from the help texts by `make docs`; a test checks that it is current.

Exit codes: 0 done, 1 any other failure, 2 an option that cannot be used, 3 an input that cannot be used, 4 no face where one is required,
5 weights missing or not fitting, 6 the result cannot be written, 7 the device is missing or out of memory, 130 stopped by Ctrl-C.
"""


def page() -> str:
    """The whole page, one section for each command."""
    runner = CliRunner()
    parts = [HEAD]
    for words in commands():
        text = runner.invoke(app, [*words, "--help"], prog_name="latentsync", env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"}, color=False)
        if text.exit_code:
            raise SystemExit(f"no help for {' '.join(words)}: {text.output}")
        lines = "\n".join(line.rstrip() for line in text.output.strip().splitlines())
        parts.append(f"## `{' '.join(['latentsync', *words])}`\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


def commands() -> list[list[str]]:
    """The words of every command, groups first."""
    root = typer.main.get_command(app)
    found: list[list[str]] = [[]]
    for name, command in sorted(getattr(root, "commands", {}).items()):
        found.append([name])
        found += [[name, sub] for sub in sorted(getattr(command, "commands", {}))]
    return found


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
