"""The report of a run: one self-contained HTML page, and its main figure as a picture.

It may use everything below `experiments`. Only `picture` imports Matplotlib, which takes a second.
"""

from sdtt_jax.reporting.report import write_report

__all__ = ["write_report"]
