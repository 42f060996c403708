"""Wrappers around the operating system and other libraries: durable files, threads, log levels.

- `durable_files` writes files that survive a power cut, and locks them.
- `pipeline` runs stages in threads, joined by bounded queues.
- `libraries` silences the log lines and progress bars of transformers.

Nothing here depends on texts, models or Arrow.
"""
