"""How good a blend is: its score on prompts, the score's gradient, and which of the best blends wins in the end."""
