"""Long runs under faults: an unmodified job whose processes are killed, and whether its end is the same."""

from workbench.soak.fault_plan import Fault, plan
from workbench.soak.report import report
from workbench.soak.run import Outcome, soak

__all__ = ["Fault", "Outcome", "plan", "report", "soak"]
