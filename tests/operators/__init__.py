"""Tests that run once, not per implementation: attention's plan on the host, dropout masks, registered operators."""
