"""A tracker at work: sessions, memory, video, runs and what is drawn of them."""
