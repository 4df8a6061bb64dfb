"""One module per paper: configurations per scale, runs that return tidy tables, drawings."""
