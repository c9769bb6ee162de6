"""What the engine needs of the world around it, as protocols of at most ten methods each."""
