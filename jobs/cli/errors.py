"""ConfigError: the error of a wrong config or command line."""


class ConfigError(ValueError):
    """A config file, an override or the command line is wrong; the message names the key and what to do."""
