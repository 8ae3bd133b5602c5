"""What the node promises in figures, measured as ratios within one run."""
