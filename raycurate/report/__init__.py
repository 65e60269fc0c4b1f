"""One HTML page about a run: `raycurate report WORKDIR`, or `write_report(workdir)`.

    runs.py      which stages' outputs are there, whole or not, and where what they were made from lies now
    sections/    one module a section: what it reads of a stage's output, and how it says it
    sampling.py  bounded reading of what may be large; evaluation.py the results of `raycurate eval`
    charts.py    the kinds of chart; svg.py turns a matplotlib figure into SVG whose colours the page decides
    html.py      the pieces of a page; style.css its looks
    page.py      all of it together, written to one file

A new section is a module in sections/ and its line in `page.SECTIONS`.
"""

from raycurate.report.page import ReportResult, write_report

__all__ = ["ReportResult", "write_report"]
