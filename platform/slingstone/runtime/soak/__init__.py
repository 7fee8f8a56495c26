"""Long runs under faults: an unmodified job whose processes are killed, and whether its end is the same."""

from slingstone.runtime.soak.plan import Fault, plan
from slingstone.runtime.soak.report import report
from slingstone.runtime.soak.run import Outcome, soak

__all__ = ["Fault", "Outcome", "plan", "report", "soak"]
