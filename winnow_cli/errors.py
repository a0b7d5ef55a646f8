"""What ends a command with a message of one line."""


class CommandError(Exception):
    """A command cannot be done; the message says why and names the option, the file or the line."""
