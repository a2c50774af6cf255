"""Whether rows of several callers may run through a segment together and come out the same."""
