"""Brings each connection to the process that owns its server-id."""
