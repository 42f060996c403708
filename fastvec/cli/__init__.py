"""The command line: a module for each command, which parses, makes one call, and prints the result.

`entry.main` is the entry point and turns errors into one line and an exit code. `streams` writes to stderr and stdout,
`progress` shows progress, `signals` turns SIGINT and SIGTERM into a request to stop.

Modules are imported inside the commands: `fastvec --help` imports neither torch nor pyarrow.
"""

from fastvec.cli.entry import main

__all__ = ["main"]
