"""The report: one HTML file that opens offline and shows what the rank costs and buys on this machine.

    profile, simulation, verification, two searches  (the result JSONs of the verbs)
        |  views       read and check them
        |  headline    say in a sentence what they mean
        |  charts, timeline   draw inline SVG
        |  sections    prose, tables
        v
    report.html      no script, no font, no image, no request; its own security policy forbids them

Drawn by hand, not by matplotlib: the charts follow the reader's light or dark theme, use the page's font, keep their
text readable on a phone, and a device can write its report with the base installation alone.
"""

from nsn_edge.report.build import ReportData, build_report, save_report
from nsn_edge.report.footprint import Footprint
from nsn_edge.report.markdown import build_markdown, save_markdown

__all__ = ["Footprint", "ReportData", "build_markdown", "build_report", "save_markdown", "save_report"]
