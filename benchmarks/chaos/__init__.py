"""Crashes, power cuts, hostile peers and load; what they cost is counted."""
