"""What crosses the link: messages, codecs, what may cross, and how it travels."""
