"""Reports of the benchmarks: `results` for tables and JSON, `plots` for PNGs.

- `results` defines the result row of the kernel benchmarks, describes the environment of a measurement and writes JSON.
- `plots` saves figures as PNGs, and draws result rows as bars with the measured ceiling.
"""
