"""What can be asked for, and what one model makes of it."""

from pellucid.request.request import Request, chosen_seed
from pellucid.request.resolved import ResolvedRequest
from pellucid.request.resolving import resolve

__all__ = ["Request", "ResolvedRequest", "chosen_seed", "resolve"]
