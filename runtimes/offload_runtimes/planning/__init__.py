"""Measure machines, links and plans, and gather what the planner asks for."""
