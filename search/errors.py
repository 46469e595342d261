"""Failures that are not the user's: the command line prints them alone and exits with 1."""


class ClusterError(Exception):
    """A cluster did not do what it was asked."""


class SearchFailedError(Exception):
    """A run cannot come to its end. `advice` is what would help, None where that is to go on."""

    def __init__(self, said: str, advice: str | None = None) -> None:
        super().__init__(said)
        self.advice = advice
