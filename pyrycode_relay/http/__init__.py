"""The public HTTP side, up to the upgrade."""
