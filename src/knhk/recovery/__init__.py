"""Snapshots, backups, continuous shipping, and the way back from them. docs/recovery.md is the operator's page."""
