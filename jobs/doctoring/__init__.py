"""Checks of the environment: Python, Java, packages, ports, disk, memory."""
