"""One trial: its trajectory, segments and checkpoints."""
