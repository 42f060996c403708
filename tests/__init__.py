import os

# `make test-slow` says so: tests marked `sampled` take all their cases
THOROUGH = os.environ.get("FASTVEC_TESTS") == "thorough"
