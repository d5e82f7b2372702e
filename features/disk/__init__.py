"""Formats on disk, one module each: names, version, reader, writer."""
