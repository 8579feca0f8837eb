"""Pure statistics on arrays of relabelled values; knows nothing of networks."""
