"""Studies of claims: many runs that differ in one thing, over seeds, and the document that they add up to."""
