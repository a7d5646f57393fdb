"""Long videos, segment by segment."""
