"""Figures of a run folder as PNG and SVG, its tables, and its page. matplotlib is imported when something is drawn."""

from fedsim.report.figures import write_figures

__all__ = ["write_figures"]
