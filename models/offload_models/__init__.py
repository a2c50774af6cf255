"""The model zoo: published architectures with seeded live weights, built without a framework."""
