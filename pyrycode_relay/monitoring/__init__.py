"""The relay's log, metrics and status page."""
