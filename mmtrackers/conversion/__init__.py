"""Official checkpoints to ours, read without running anything in them."""
