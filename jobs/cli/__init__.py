"""What the programs share: config, command line, output."""
