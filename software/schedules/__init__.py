"""Schedules: whole networks, stage by stage, on a device; exact cycles, reports, exploration."""
