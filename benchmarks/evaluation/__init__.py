"""From a fitted posterior and a split to numbers and curves."""
