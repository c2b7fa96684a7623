"""SAT: N:M sparse neural-network training on open hardware."""
from __future__ import annotations
