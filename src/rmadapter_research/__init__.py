"""Compare with the field: a leaderboard, the paper's tables again, a search for settings, and texts
about classes."""
