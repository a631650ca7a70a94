"""Prompt-tag accuracy of any diffusers text-to-image model."""
