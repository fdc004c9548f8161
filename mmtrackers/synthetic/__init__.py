"""Scenes composed from pictures, as one or two cameras see them."""
