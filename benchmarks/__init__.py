"""What it costs, beside peers, as ratios measured in one run."""
