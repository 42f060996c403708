from tests.vectors.conftest import articles_in_one, articles_in_shards, model, settings

__all__ = ["articles_in_one", "articles_in_shards", "model", "settings"]
