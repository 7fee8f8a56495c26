"""What a request can end with; the message is meant for its sender."""


class Refused(ValueError):
    """The request cannot be answered as it is: names the field and what to do."""


class Contradicted(Refused):
    """A pair has been voted on, otherwise."""


class Unavailable(RuntimeError):
    """A generator or a reward cannot be had now; asking again helps."""
