"""Bring bundles to where they run."""
