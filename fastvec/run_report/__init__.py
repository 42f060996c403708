"""The report on a run: one HTML page that needs no network and no script.

- `target` says where a report may be written, and writes it;
- `page` is what a page consists of, and its HTML; `style` is its style sheet;
- `plots` draws the figures, as SVG;
- `embedding` makes the page of an embedding job, `adaptation` that of an adaptation;
- `machine` describes this machine and the versions of what ran.
"""
