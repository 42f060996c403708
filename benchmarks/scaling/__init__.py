"""What `benchmarks.scale` measures and computes: jobs of many workers, many shards, and their cost.

- `sleeping` has the encoder that only waits as long as a GPU would take;
- `processes` runs jobs with it in several processes;
- `bookkeeping` runs a job of up to a million shards without embedding them;
- `cost` computes what a large job takes, from rates that it measures or assumes.
"""
