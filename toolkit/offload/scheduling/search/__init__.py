"""Certified search for many cut points: decisions at a limit between a bound and an order."""
