"""Replay a history through the service's own code: what would have happened, and at what cost."""
