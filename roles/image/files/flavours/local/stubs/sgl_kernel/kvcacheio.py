"""Empty on purpose: imported by name, never called on a CPU."""
