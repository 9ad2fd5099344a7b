"""The server that a prep or a benchmark uses, and the proof that its metrics arrive."""
