"""What the relay tells about itself: log, metrics, status page."""
