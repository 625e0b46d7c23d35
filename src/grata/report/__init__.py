"""Results of a run for a person to read: scores, volumes, figures and the summary."""

from .cases import FAILED, case_row, case_rows, report_verdicts, verdict_lines, write_cases
from .contact_sheet import contact_sheet
from .overview_figure import overview_figure
from .scores import MEAN_CLASS, SOURCE, case_scores, read_scores, summarise_scores, write_scores
from .summary import Fault, format_summary, write_summary
from .volumes import case_volumes, write_volumes

__all__ = [
    "FAILED",
    "MEAN_CLASS",
    "SOURCE",
    "Fault",
    "case_row",
    "case_rows",
    "case_scores",
    "case_volumes",
    "contact_sheet",
    "format_summary",
    "overview_figure",
    "read_scores",
    "report_verdicts",
    "summarise_scores",
    "verdict_lines",
    "write_cases",
    "write_scores",
    "write_summary",
    "write_volumes",
]
