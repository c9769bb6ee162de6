"""How many replicas there ought to be: measured, decided, written down, and done."""
