"""Models held against each other: leaderboards and searches."""
