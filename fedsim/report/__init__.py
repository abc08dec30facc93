"""Figures of a run folder, as PNG and SVG. matplotlib is imported when one is drawn."""

from fedsim.report.figures import write_figures

__all__ = ["write_figures"]
