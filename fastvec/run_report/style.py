"""The style sheet of a report. The figures take their colours from it, so that they change with the page's scheme."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #5b6470; --line: #dfe3e8; --accent: #2f5fd0;
  --wash: #c9d6f6; --note: #eef2fd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1c2026; --ink: #e6e9ed; --soft: #9aa4b0; --line: #313741; --accent: #7ea2f7;
    --wash: #33456f; --note: #202a40;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1rem 3rem; }
h1 { margin: 0; font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0; font-size: 1rem; }
p { margin: 0; }
.about { margin-top: .25rem; color: var(--soft); overflow-wrap: anywhere; }
.totals { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: 1rem; margin: 1.5rem 0 0; }
.total, .card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
.total { padding: .75rem 1rem; }
.total dt { color: var(--soft); font-size: .8rem; }
.total dd { margin: 0; font-size: 1.35rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; }
.total dd span { display: block; color: var(--soft); font-size: .8rem; font-weight: 400; }
.notes { margin: 1rem 0 0; padding: .75rem 1rem .75rem 2rem; border-radius: .5rem; background: var(--note); }
.notes li { overflow-wrap: anywhere; }
.figures { display: grid; gap: 1rem; margin: 1rem 0 0; }
.figures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.tables { columns: 26rem; column-gap: 1rem; margin: 1rem 0 0; }
.tables .card { break-inside: avoid; margin: 0 0 1rem; }
.card { padding: 1rem; min-width: 0; margin: 0; }
.card p { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
.card svg { display: block; width: 100%; height: auto; margin-top: .75rem; }
.card svg text { font-family: inherit !important; }
table { width: 100%; margin-top: .5rem; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .35rem 0; border-top: 1px solid var(--line); text-align: left; vertical-align: top; }
th + td, td + td { padding-left: 1rem; }
tr:first-child > * { border-top: 0; }
th { width: 30%; color: var(--soft); font-weight: 400; }
td { overflow-wrap: anywhere; white-space: pre-line; font-variant-numeric: tabular-nums; }
td.number { width: 1%; white-space: nowrap; text-align: right; }
footer { margin-top: .5rem; color: var(--soft); font-size: .85rem; }
@media print { body { background: none; } .total, .card { break-inside: avoid; } }
"""
