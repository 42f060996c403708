"""Exact search over the vectors of finished outputs.

- `job` is `fastvec.search`: it encodes the queries, searches, and returns or writes the hits.
- `exact` finds the k best rows of each query by blocked matrix products; `scoring` compares one block with the queries.
- `filters` parses the expressions of `--filter`; `hits` makes tables of what was found, and prints them.
  `progress` says how far a search or an index is.
- `index` writes approximate indexes with FAISS or Lance; `recall` measures them against exact search.
"""
