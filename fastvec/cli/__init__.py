"""The command line: each command parses its options, calls a job, and prints the result.

- `embed`, `adapt`, `outputs` (verify, inspect) and `convert` (convert, merge) are the commands; `options` are those
  that several share.
- `entry.process` is the entry point; `entry.main` turns errors of fastvec and click into one line and an exit code.
- `streams` writes to stderr and stdout, `progress` displays progress, and `signals` turns signals into a request to
  stop.

A command imports what it needs when it runs, so `fastvec --help` imports neither torch nor pyarrow.
"""

from fastvec.cli.entry import process

__all__ = ["process"]
