"""What `benchmarks.faults` and `benchmarks.soak` are made of: faults, the real command under them, and its promises.

- `machine`: a simulated machine whose programs are killed at a system call and whose power fails; also for tests
- `corpora`: small corpora and a small model
- `command`: the real command in a process forked from this one
- `jobs`: a corpus, an output and options, and what an undisturbed run makes of them
- `trial`: a job that is disturbed again and again; after each run the promises are checked
- `faults`, `damage`: what disturbs it
- `remedies`: does what an error message says
"""
