"""Folders and Hub repositories: loading, saving, publishing, and the adapters in them."""
