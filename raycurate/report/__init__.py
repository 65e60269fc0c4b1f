"""One HTML page about a run: `raycurate report WORKDIR`, or `write_report(workdir)`.

    runs.py      which stages' outputs are there, whole or not, and where what they were made from lies now
    sections/    one module a section: what it reads of a stage's output, and the values it shows
    templates/   one Jinja2 template a section, and the page: how these look; pieces.html is what they share
    sampling.py  bounded reading of what may be large; evaluation.py the results of `raycurate eval`
    charts.py    the kinds of chart; svg.py turns a matplotlib figure into SVG whose colours the page decides
    rendering.py fills templates in; text.py writes numbers and quoted texts; style.css has the colours and the layout
    page.py      all of it together, written to one file

A new section is a module in sections/, its template, and its line in `page.SECTIONS`.
"""

from raycurate.report.page import ReportResult, write_report

__all__ = ["ReportResult", "write_report"]
