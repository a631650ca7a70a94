"""The gradient of a blend's score in its weights: differentiable sampling, the backward pass, and what it takes."""
