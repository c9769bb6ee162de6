"""The command line. Data go to stdout, everything else to stderr; exit_codes.py is the table of exit codes.

What a command needs is imported in the command, so that `knhk --help` and shell completion are quick.
"""
