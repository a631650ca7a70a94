"""Ways to prepare a donor's difference before it is weighed: their names and numbers, and the functions."""
