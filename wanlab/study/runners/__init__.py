"""Ways to run many specifications."""
