"""Shared code of the programs: config, command line, output, logging."""
