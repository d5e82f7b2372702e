"""Checks of the set that the project stands on: Python, Java, packages, ports, disk, memory."""
