"""Empty on purpose: imported by name, never called for a text model."""
