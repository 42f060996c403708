"""Tests of fastvec.distributed; whole runs of several processes are in tests/training/test_ranks.py."""
