"""What an evaluation found, as texts, tables, a page and pictures."""
