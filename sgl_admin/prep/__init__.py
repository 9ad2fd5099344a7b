"""A prep: planned, carried out stage by stage, and recorded."""
