"""Models that come with Hob."""
