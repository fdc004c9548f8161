"""What every tracker is made of: seams, trunks, heads, losses, packing."""
