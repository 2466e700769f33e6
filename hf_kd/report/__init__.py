"""Reports from logs alone: a page about a comparison, a run or several, its tables and figures; no model is loaded.

`write_report` writes the page, `update_readme` a table into a README, `export_results` one file that carries all
numbers. `read_log_history`, `plot_losses` and `plot_temperatures` draw the logs of runs.
"""

from .opening import read_results
from .plots import (
    COLORS,
    TEMPERATURE,
    loss_series,
    plot_losses,
    plot_temperatures,
    read_log_history,
    temperature_series,
)
from .results import Results, Run
from .writing import Report, export_results, update_readme, write_report

__all__ = [
    "COLORS",
    "TEMPERATURE",
    "Report",
    "Results",
    "Run",
    "export_results",
    "loss_series",
    "plot_losses",
    "plot_temperatures",
    "read_log_history",
    "read_results",
    "temperature_series",
    "update_readme",
    "write_report",
]
