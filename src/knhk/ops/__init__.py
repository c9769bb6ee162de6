"""The operations server on port 9090: what is asked of a node by those who run it."""
