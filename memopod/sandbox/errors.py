"""What keeps a sandbox from working."""


class SandboxError(Exception):
    """The sandbox cannot start, or cannot be used; the message says what to do."""
