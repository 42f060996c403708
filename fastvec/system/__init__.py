"""What fastvec needs of the operating system and of other libraries: durable files, threads, memory, silence.

- `durable_files` writes files that survive a power cut, and locks them.
- `pipeline` runs stages in threads, joined by bounded queues.
- `limits` says how much memory and how many cores a process may use.
- `allocator` lets the C library keep freed memory, `memory` recognizes that there is no more.
- `stop_signals` are those that stop a job.
- `libraries` silences the warnings, log lines and progress bars of other libraries.

Nothing here depends on texts, models or Arrow.
"""
