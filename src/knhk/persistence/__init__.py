"""Stores of the journal, and verification of what they hold without an engine."""
