"""What people read of a run: the table of rounds in a terminal, and one HTML page."""
