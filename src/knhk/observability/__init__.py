"""What the process tells about itself: metrics, logs, and how much of the time it was alive."""
