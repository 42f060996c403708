"""The command line: each command parses its options, calls a job, and prints the result.

- `commands` has the commands; `options` are those that several share.
- `entry.process` is the entry point; `entry.main` turns errors of fastvec and click into one line and an exit code.
- `streams` writes to stderr and stdout, `progress` displays progress, and `signals` turns signals into a request to
  stop.
"""

from fastvec.cli.entry import process

__all__ = ["process"]
