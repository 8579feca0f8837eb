"""What a library says of a damaged file, fit for a sentence."""

MOST = 160
"""Letters of it that are shown."""


def reason_of(error: object) -> str:
    """Return a reason on one line, without a full stop, and not too long.

    Libraries quote what they found, which may be lines and pages of bytes; some say
    nothing but the kind of the error.
    """
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return said if len(said) <= MOST else f"{said[:MOST]}…"
