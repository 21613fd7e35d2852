"""What a routed frame, an upgrade and an idle connection cost: ``python -m benchmarks``."""
