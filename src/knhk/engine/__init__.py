"""The write path, files in the order in which data flows.

admission -> committer -> scheduler -> executor -> committer -> projector -> control (the facade) ; service starts and stops
"""
