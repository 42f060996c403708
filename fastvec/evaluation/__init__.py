"""`fastvec eval`: judges models on the user's own data, beside baselines.

- `evaluate` is `fastvec.evaluate`: it reads the tasks, loads one model after another, and compares their scores.
- `files` reads tasks from files; `columns` reads the columns of one file.
- `tasks` has what a task is; `similarity`, `retrieval`, `classification` and `clustering` are the four kinds.
- `contestants` has models and whatever else has vectors; `baselines` has TF-IDF and BM25.
- `top_k` searches exactly; `bootstrap` resamples.
- `report` is the result, as a table and as JSON; `plot` draws it.
"""
