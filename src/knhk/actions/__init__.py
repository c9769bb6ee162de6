"""Actions: what the steps of a workflow do. The built-in ones, the decorator for others, and the registry of all."""
