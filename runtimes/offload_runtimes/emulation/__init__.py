"""Emulate a slow device and a link on one machine; run experiments over namespaces."""
