"""The command line: each command's arguments, what it prints, its exit code."""
