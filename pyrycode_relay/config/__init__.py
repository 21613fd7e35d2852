"""The relay's settings: their names, values, sources and mistakes."""
