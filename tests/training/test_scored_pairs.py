from pathlib import Path

import numpy as np
import pytest

from fastvec.errors import InputError
from fastvec.training.scored_pairs import read_scored_pairs, spearman


def test_spearman_by_hand_with_ties() -> None:
    x, y = np.array([1.0, 2.0, 2.0, 9.0]), np.array([0.1, 0.4, 0.3, 0.2])
    # ranks 1, 2.5, 2.5, 4 and 1, 4, 3, 2: covariance 1.5 over sqrt(4.5 · 5)
    assert spearman(x, y) == pytest.approx(1.5 / np.sqrt(4.5 * 5))
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    assert np.isnan(spearman(x, np.ones(4)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bare.csv", 'a,"b, c",3.5\nd,e,1\n'),
        ("header.csv", '\ufeffscore,sentence2,id,sentence1\n3.5,"b, c",0,a\n1,e,1,d\n'),
        ("tabs.tsv", "sentence1\tsentence2\tscore\na\tb, c\t3.5\nd\te\t1\n\n"),
        ("tabs.txt", "a\tb, c\t3.5\nd\te\t1\n"),
        ("LOUD.CSV", 'a,"b, c",3.5\nd,e,1\n'),
    ],
)
def test_pairs_are_read_with_a_header_or_in_order(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    pairs = read_scored_pairs(tmp_path / name)
    assert (pairs.first, pairs.second, pairs.scores.tolist()) == (["a", "d"], ["b, c", "e"], [3.5, 1.0])


def test_a_quotation_mark_between_tabs_swallows_nothing(tmp_path: Path) -> None:
    (tmp_path / "quotes.tsv").write_text('"Whales\tsing\t1\n"Trains" run\tlate\t2\nno\t"\t3\n')
    pairs = read_scored_pairs(tmp_path / "quotes.tsv")
    assert (pairs.first, pairs.second) == (['"Whales', '"Trains" run', "no"], ["sing", "late", '"'])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "the file is empty"),
        (
            "a,b\n",
            "expected the columns sentence1, sentence2, score, named in a header or in this order; its first row is "
            "'a, b'",
        ),
        ("a,b,much\n", "its first row is 'a, b, much'"),
        ("a,b,inf\nc,d,1\n", "its first row is 'a, b, inf'"),
        ("a,b,1\nc,d,nan\n", "line 2 has the score 'nan': expected a finite number"),
        ("sentence1,sentence2,score\na,b,1\n\nc,d,n/a\n", "line 4 has the score 'n/a': expected a finite number"),
        ("a,b,1\nc,,2\n", "line 2 does not have two texts and a score: correct it"),
        ("sentence1,sentence2,score\na,b,1\nc,d\n", "line 3 does not have two texts and a score"),
        ("a,b,1\nc,d,1\n", "a correlation needs at least two pairs with different scores, found 2"),
    ],
)
def test_other_files_are_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "pairs.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_scored_pairs(path)
    assert "\n" not in str(caught.value)
