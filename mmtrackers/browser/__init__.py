"""Boxes drawn in a browser: the page of a first frame for `mmtrackers track`, and the app."""
