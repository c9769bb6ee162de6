"""The process's surroundings: its clock and its ids."""
