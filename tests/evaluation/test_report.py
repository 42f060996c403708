from fastvec.evaluation.report import Difference, EvalReport, Score, TaskInfo


def score(task: str, measure: str, name: str, value: float, **others: float) -> Score:
    differences = tuple(
        Difference(other=other.replace("_", "-"), value=by, low=by - 0.02, high=by + 0.04)
        for other, by in others.items()
    )
    return Score(
        task=task,
        measure=measure,
        name=name,
        baseline=name == "TF-IDF",
        value=value,
        low=value - 0.01,
        high=value + 0.03,
        differences=differences,
    )


def test_table() -> None:
    report = EvalReport(
        tasks=(
            TaskInfo(name="dev", kind="similarity", size="9 pairs", notes=()),
            TaskInfo(name="toy", kind="retrieval", size="2 queries, 4 documents", notes=("left out: 1",)),
        ),
        names=("TF-IDF", "one", "two"),
        scores=(
            score("dev", "Spearman", "one", 0.5),
            score("dev", "Spearman", "two", 0.7, one=0.2),
            score("toy", "nDCG@10", "TF-IDF", 0.8),
            score("toy", "nDCG@10", "one", 0.75, TF_IDF=-0.05),
            score("toy", "nDCG@10", "two", 0.8, TF_IDF=0.0, one=0.05),
        ),
        models=(),
        samples=1000,
        seconds=1.0,
    )
    assert str(report).splitlines() == [
        "× 100   dev         toy",
        "        Spearman    nDCG@10",
        "TF-IDF  -           80.0 ±2.0*",
        "one     50.0 ±2.0   75.0 ±2.0",
        "two     70.0 ±2.0*  80.0 ±2.0*",
        "",
        "against the best baseline",
        "one     -           -5.0 ±3.0",
        "two     -           +0.0 ±3.0",
        "",
        "against one",
        "two     +20.0 ±3.0  +5.0 ±3.0",
        "",
        "dev  9 pairs",
        "toy  2 queries, 4 documents; left out: 1",
        "±: half of the 95 % interval over 1,000 bootstrap samples; *: the best of its column",
    ]
    assert report.return_code == 0
    assert report.to_json()["scores"][1]["differences"][0]["other"] == "one"
