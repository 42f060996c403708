"""The command line, with one function per command: it parses the options, makes one call, and prints the result.

`entry.main` is the entry point; it turns each error into one line and an exit code. `streams` writes to stderr and
stdout, `progress` displays progress, and `signals` turns SIGINT and SIGTERM into a request to stop.

A command imports what it needs when it runs, so `fastvec --help` imports neither torch nor pyarrow.
"""

from fastvec.cli.entry import main

__all__ = ["main"]
