"""What a report consists of, and its HTML.

Names of files, columns and models are escaped, and so are control characters and those that change the direction of
writing. A policy in the page forbids it scripts and requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fastvec.errors import printable
from fastvec.run_report.plots import Svg
from fastvec.run_report.style import STYLE
from fastvec.run_report.target import GENERATOR

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="{{ generator }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ page.title }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header>
<h1>{{ page.title }}</h1>
<p class="about">{{ page.about }}</p>
</header>
<dl class="totals">
{%- for total in page.totals %}
<div class="total"><dt>{{ total.name }}</dt><dd>{{ total.value }}<span>{{ total.detail }}</span></dd></div>
{%- endfor %}
</dl>
{%- if page.notes %}
<ul class="notes">
{%- for note in page.notes %}
<li>{{ note }}</li>
{%- endfor %}
</ul>
{%- endif %}
<section class="figures">
{%- for figure in page.figures %}
<figure class="card">
<figcaption><h2>{{ figure.title }}</h2><p>{{ figure.caption }}</p></figcaption>
{{ figure.svg }}
</figure>
{%- endfor %}
</section>
<section class="tables">
{%- for table in page.tables %}
<section class="card">
<h2>{{ table.title }}</h2>
{%- if table.caption %}
<p>{{ table.caption }}</p>
{%- endif %}
<table>
{%- for row in table.rows %}
<tr><th scope="row">{{ row[0] }}</th>
{%- for value in row[1:] %}<td{% if not loop.last %} class="number"{% endif %}>{{ value }}</td>{% endfor %}</tr>
{%- endfor %}
</table>
</section>
{%- endfor %}
</section>
<footer>{{ page.footer }}</footer>
</main>
</body>
</html>
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """A number at the top of the page, with a few words below it."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    title: str
    caption: str
    svg: Svg


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of a name and a value; or of a name, a number and what it means."""

    title: str
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    title: str
    about: str
    totals: Sequence[Total]
    notes: Sequence[str]
    figures: Sequence[Figure]
    tables: Sequence[Table]
    footer: str


def render(page: Page) -> str:
    """Return the HTML of a page, with its figures inside."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        if isinstance(value, Svg):
            return Markup(value.markup)
        return value if isinstance(value, Markup) else "\n".join(map(printable, str(value).split("\n")))

    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=shown)
    return environment.from_string(_TEMPLATE).render(page=page, style=Markup(STYLE), generator=GENERATOR)


def duration(seconds: float) -> str:
    """Return a time for a total: in seconds, or from 100 on as h:mm:ss."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
