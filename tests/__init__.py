import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
ARTICLES = ROOT / "tests/data/articles.parquet"
# set by `make test-slow`: tests marked `sampled` then run all their cases
THOROUGH = os.environ.get("FASTVEC_TESTS") == "thorough"
