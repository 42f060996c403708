"""A module for each command, or for two that belong together: `outputs` has verify and inspect, `convert` also merge.

A command imports what it needs when it runs, so `fastvec --help` imports neither torch nor pyarrow.
"""
