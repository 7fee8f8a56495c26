"""What is no text, although Python keeps it in a string."""

import re

HALF_PAIR = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: it can neither be encoded nor sent."""
