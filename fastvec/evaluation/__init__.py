"""`fastvec eval`: judges models on the user's own data, beside baselines.

- `evaluate` is `fastvec.evaluate`: it reads the tasks, loads one model after another, and compares their scores.
- `files` reads tasks from files; `columns` reads the columns of one file.
- `tasks` says what a task is; `similarity`, `retrieval` and `labels` have the four kinds.
- `contestants` has models and whatever else has vectors; `baselines` has TF-IDF and BM25.
- `top_k` searches exactly; `bootstrap` resamples.
- `report` is the result: a table, JSON and a plot.
"""
