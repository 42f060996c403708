import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
ARTICLES = ROOT / "tests/data/articles.parquet"
# `make test-slow` says so: tests marked `sampled` take all their cases
THOROUGH = os.environ.get("FASTVEC_TESTS") == "thorough"
