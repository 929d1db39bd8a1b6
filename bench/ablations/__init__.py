"""What each part of the loop adds in the tiny world: results, and how they were made."""
