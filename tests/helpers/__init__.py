"""Helpers shared by the tests: tiny models, checkpoint folders, small corpora and outputs, a machine that can fail."""
