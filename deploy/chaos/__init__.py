"""The crash drill: the whole system under load while everything in it is killed, then held against its own log."""


class ChaosError(RuntimeError):
    """The drill could not be done to its end; says what did not happen."""
