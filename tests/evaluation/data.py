"""A collection of four documents in BEIR's layout."""

import json
from pathlib import Path

DOCUMENTS = {
    "d1": ("Trains", "A locomotive pulls a train."),
    "d2": ("Bread", "Bread is baked from flour."),
    "d3": ("", "Cats chase mice at night."),
    "d4": ("Rail", "Railways carry freight and passengers."),
}
QUERIES = {"q1": "railway", "q2": "baking bread", "q3": "nothing"}
QRELS = {"q1": {"d1": 1, "d4": 2}, "q2": {"d2": 1, "d9": 1}, "q7": {"d1": 1}}


def save_beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": id, "title": title, "text": text, "metadata": {}} for id, (title, text) in DOCUMENTS.items()]
    queries = [{"_id": id, "text": text} for id, text in QUERIES.items()]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    judged = [f"{query}\t{document}\t{grade}" for query, own in QRELS.items() for document, grade in own.items()]
    (folder / "qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged, ""]))
    return folder
