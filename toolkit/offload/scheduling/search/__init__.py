"""Certified search for many cut points: threshold decisions between a bound and an order."""
